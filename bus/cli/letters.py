"""How dead letters look on a terminal; nothing that a message carries reaches it unescaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..logs import escape
from ..outcome import Letter


MOST_ROWS = 200


def name(letter: Letter) -> str:
    """Return the name of a letter that is unique among all services."""
    return f"{letter.service}/{letter.id}"


def place(letter: Letter) -> str:
    """Return where it failed: the innermost file and line of its traceback, or else the handler."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', letter.failure.traceback)
    return f"{frames[-1][0].rpartition('/')[2]}:{frames[-1][1]} in {frames[-1][2]}" if frames else letter.handler


def show_list(letters: Sequence[Letter]) -> None:
    """Print the groups, then the letters."""
    console = Console()
    if not letters:
        console.print("There are no open dead letters.")
        return
    groups = Counter((f"{x.service}.{x.handler}", x.failure.reason, x.failure.error_type, place(x)) for x in letters)
    table = Table(title=f"{len(letters)} dead letters, by exception and place")
    for column in ("count", "handler", "reason", "exception", "place"):
        table.add_column(column, overflow="fold")
    for group, count in groups.most_common():
        table.add_row(str(count), *(Text(escape(part)) for part in group))
    console.print(table)
    table = Table(title="letters" if len(letters) <= MOST_ROWS else f"the first {MOST_ROWS} letters; --json has all")
    for column in ("letter", "type", "attempts", "last failed", "error"):
        table.add_column(column, overflow="fold", no_wrap=column == "letter")
    for letter in letters[:MOST_ROWS]:
        failure = letter.failure
        again = f" (failed again × {letter.failed_again})" if letter.failed_again else ""
        error = escape(f"{failure.error_type}: {failure.error}"[:200] + again)
        at = f"{failure.last_failed_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(name(letter), Text(escape(letter.message.type)), str(failure.attempts), at, Text(error))
    console.print(table)


def show_one(letter: Letter) -> None:
    """Print everything about a letter."""
    message, failure = letter.message, letter.failure
    told = {
        "letter": name(letter),
        "handler": f"{letter.service}.{letter.handler}",
        "reason": failure.reason,
        "attempts": failure.attempts,
        "failed again": letter.failed_again,
        "first failed": failure.first_failed_at.isoformat(),
        "last failed": failure.last_failed_at.isoformat(),
        "worker": failure.worker,
        "type": message.type,
        "version": message.version,
        "id": message.id,
        "source": message.source,
        "time": message.time.isoformat(),
        "correlation id": message.correlation_id,
        "causation id": message.causation_id,
        **{f"header {key}": value for key, value in message.headers.items()},
        **({"problems": "; ".join(message.problems)} if message.problems else {}),
        "error": f"{failure.error_type}: {failure.error}",
    }
    console = Console(soft_wrap=True, highlight=False)
    for key, value in told.items():
        console.print(Text.assemble((f"{escape(key):16} ", "bold"), escape(str(value))))
    console.print(Text("body", style="bold"))
    console.print(Text(_lines(_body(message.body))))
    if failure.traceback:
        console.print(Text("traceback", style="bold"))
        console.print(Text(_lines(failure.traceback)))


def _body(body: bytes) -> str:
    try:
        return orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return body.decode(errors="backslashreplace")


def _lines(text: str) -> str:
    return "\n".join(escape(line) for line in text.splitlines())
