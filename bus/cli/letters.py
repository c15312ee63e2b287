"""How dead letters look on a terminal; nothing that a message carries reaches it unescaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC
from typing import TYPE_CHECKING, Final, TypeAlias

from ..failure import place_in
from ..message import Message
from ..outcome import Letter, Mark
from .choice import name
from .indented import indented
from .screen import block, show, text


if TYPE_CHECKING:
    from rich.table import Table

MOST_ROWS: Final = 200
UNKNOWN: Final = "unknown"
"""The type of what named none, and was given up by the broker."""
CLOSING: Final = ("replayed", "edited", "discarded")
SHOWN_APART: Final = {"body", "headers", "problems"}


Group: TypeAlias = tuple[str, str, str, str]


@dataclass(slots=True)
class Listing:
    """What a list shows: the groups of all letters, and the rows of the oldest; the letters themselves are not kept."""

    count: int = 0
    groups: Counter[Group] = field(default_factory=Counter)
    rows: list[tuple[object, ...]] = field(default_factory=list)

    def add(self, letter: Letter) -> None:
        """Count a letter."""
        failure = letter.failure
        self.count += 1
        self.groups[
            f"{letter.service}.{letter.handler}", failure.reason, failure.error_type, place_in(failure.traceback)
        ] += 1
        if len(self.rows) < MOST_ROWS:
            at = f"{failure.last_failed_at:%Y-%m-%d %H:%M:%S}"
            error = " ".join(f"{failure.error_type}: {failure.error}".split())[:200] + _state(letter)
            self.rows.append(
                (name(letter), letter.handler, letter.message.type or UNKNOWN, failure.attempts, at, error)
            )


def _state(letter: Letter) -> str:
    again = f" (failed again × {letter.failed_again})" if letter.failed_again else ""
    closing = [mark for mark in letter.history if mark.kind in CLOSING]
    return again + (f" ({closing[-1].kind} by {closing[-1].operator})" if letter.closed and closing else "")


def show_list(listing: Listing, services: Sequence[str]) -> None:
    """Print the groups, then the letters; where there are none, in which services none was found."""
    if not listing.count:
        show(text(f"There are no open dead letters that match in {', '.join(services)}."))
        return
    title = "The letters" if listing.count <= MOST_ROWS else f"The oldest {MOST_ROWS} letters; --json has all"
    show(
        text(f"{listing.count} dead letters, by exception and place", "bold"),
        _groups(listing),
        text(title, "bold"),
        _rows(listing),
    )


def _groups(listing: Listing) -> Table:
    from rich.table import Table

    table = Table("count", "handler", "reason", "exception", "place")
    for group, count in listing.groups.most_common():
        table.add_row(str(count), *map(text, group))
    return table


def _rows(listing: Listing) -> Table:
    from rich.table import Column, Table

    table = Table(Column("letter", no_wrap=True), "handler", "type", "attempts", "last failed (UTC)", "error")
    for row in listing.rows:
        table.add_row(*map(text, row))
    return table


def show_one(letter: Letter) -> None:
    """Print everything about a letter."""
    message, failure = letter.message, letter.failure
    told = {
        "letter": name(letter),
        "handler": f"{letter.service}.{letter.handler}",
        "state": "closed" if letter.closed else "open",
        "reason": failure.reason,
        "error": f"{failure.error_type}: {failure.error}",
        "place": place_in(failure.traceback),
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
    if letter.history:
        parts += [text("history (UTC)", "bold"), *(text(_told(mark)) for mark in letter.history)]
    shown = indented(message.body)
    body = message.body.decode(errors="backslashreplace") if shown is None else shown
    parts += [text(f"body ({len(message.body)} bytes)", "bold"), block(body)]
    if failure.traceback:
        parts += [text("traceback", "bold"), block(failure.traceback)]
    show(*parts, wrap=False)


def _told(mark: Mark) -> str:
    to = {"edited": ", sent as ", "replayed": ", to "}.get(mark.kind, "") + mark.to if mark.to else ""
    by = f" by {mark.operator}" if mark.operator and not mark.kind.startswith("failed") else f" in {mark.operator}"
    return f"  {mark.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} {mark.kind}{by if mark.operator else ''}{to}"


def _attributes(message: Message) -> dict[str, object]:
    values = {field.name: getattr(message, field.name) for field in fields(message) if field.name not in SHOWN_APART}
    values["type"] = message.type or UNKNOWN
    return {f"message {key.replace('_', ' ')}": value for key, value in values.items() if value not in (None, False)}
