"""How dead letters look on a terminal; nothing that a message carries reaches it unescaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import orjson

from ..message import Message
from ..outcome import Letter
from .choice import name
from .screen import block, show, text


if TYPE_CHECKING:
    from rich.table import Table

MOST_ROWS: Final = 200
FRAME: Final = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
SHOWN_APART: Final = {"body", "headers", "problems"}


def place(letter: Letter) -> str:
    """Return where it failed: the innermost file and line of its traceback; "" where it never ran."""
    frames = FRAME.findall(letter.failure.traceback)
    return f"{frames[-1][0].rpartition('/')[2]}:{frames[-1][1]} in {frames[-1][2]}" if frames else ""


def show_list(letters: Sequence[Letter]) -> None:
    """Print the groups, then the letters."""
    if not letters:
        show(text("There are no open dead letters that match."))
        return
    title = "The letters" if len(letters) <= MOST_ROWS else f"The oldest {MOST_ROWS} letters; --json has all"
    show(
        text(f"{len(letters)} dead letters, by exception and place", "bold"),
        _groups(letters),
        text(title, "bold"),
        _rows(letters[:MOST_ROWS]),
    )


def _groups(letters: Sequence[Letter]) -> Table:
    from rich.table import Table

    counts = Counter((f"{x.service}.{x.handler}", x.failure.reason, x.failure.error_type, place(x)) for x in letters)
    table = Table("count", "handler", "reason", "exception", "place")
    for group, count in counts.most_common():
        table.add_row(str(count), *map(text, group))
    return table


def _rows(letters: Sequence[Letter]) -> Table:
    from rich.table import Column, Table

    table = Table(Column("letter", no_wrap=True), "handler", "type", "attempts", "last failed (UTC)", "error")
    for letter in letters:
        failure = letter.failure
        again = f" (failed again × {letter.failed_again})" if letter.failed_again else ""
        at = f"{failure.last_failed_at:%Y-%m-%d %H:%M:%S}"
        error = " ".join(f"{failure.error_type}: {failure.error}".split())[:200] + again
        table.add_row(*map(text, (name(letter), letter.handler, letter.message.type, failure.attempts, at, error)))
    return table


def show_one(letter: Letter) -> None:
    """Print everything about a letter."""
    message, failure = letter.message, letter.failure
    told = {
        "letter": name(letter),
        "handler": f"{letter.service}.{letter.handler}",
        "reason": failure.reason,
        "error": f"{failure.error_type}: {failure.error}",
        "place": place(letter),
        "attempts": failure.attempts,
        "failed again": letter.failed_again,
        "first failed at": failure.first_failed_at,
        "last failed at": failure.last_failed_at,
        "worker": failure.worker,
        **_attributes(message),
        **{f"header {key}": value for key, value in message.headers.items()},
        **{f"problem {number}": problem for number, problem in enumerate(message.problems, 1)},
    }
    parts = [text(f"{key:22} ", "bold") + text(value) for key, value in told.items()]
    parts += [text(f"body ({len(message.body)} bytes)", "bold"), block(_body(message.body))]
    if failure.traceback:
        parts += [text("traceback", "bold"), block(failure.traceback)]
    show(*parts, wrap=False)


def _attributes(message: Message) -> dict[str, object]:
    values = {field.name: getattr(message, field.name) for field in fields(message) if field.name not in SHOWN_APART}
    return {f"message {key.replace('_', ' ')}": value for key, value in values.items() if value not in (None, False)}


def _body(body: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body.decode(errors="backslashreplace")
