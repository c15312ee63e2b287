"""The ledger: what was published against what was handled, by the fault during which it was published."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from .load import HANDLERS


Move: TypeAlias = tuple[str, int]
SETTLED: Final = 1.0
"""Seconds of the load before a fault that count with it: what was on its way when it came."""


class Published(NamedTuple):
    """One publish that is over."""

    stored: bool
    move: Move
    took: float
    at: float


class Handled(NamedTuple):
    """One event that a handler is done with."""

    handler: str
    move: Move
    at: float


@dataclass(frozen=True)
class Found:
    """What became of the events that were published during one fault. Times are in seconds."""

    stored: int
    failed: int
    lost: int
    duplicates: int
    out_of_order: int
    worst_publish: float
    longest_silence: float


def published(folder: Path) -> list[Published]:
    """Return every publish so far."""
    lines = _lines(folder / "published")
    return [
        Published(kind == "stored", (parcel, int(n)), float(took), float(at)) for kind, parcel, n, took, at in lines
    ]


def handled(folder: Path) -> list[Handled]:
    """Return everything that was handled so far, in its order."""
    return [Handled(handler, (parcel, int(n)), float(at)) for handler, parcel, n, at in _lines(folder / "handled")]


def _lines(path: Path) -> Iterable[list[str]]:
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [line.split() for line in whole.splitlines()]


def rejected(move: Move) -> bool:
    """Tell whether the handler that gives up gives up on this one."""
    return move[1] % 10 == 0


def missing(folder: Path, until: float, *, mended: bool) -> list[tuple[str, Move]]:
    """Return what was stored until then and not handled by now, by handler; letters count once they can be handled."""
    seen = {(each.handler, each.move) for each in handled(folder)}
    return [
        (handler, each.move)
        for each in published(folder)
        for handler in HANDLERS
        if each.stored and each.at <= until and (handler, each.move) not in seen
        if mended or handler != "given_up" or not rejected(each.move)
    ]


def found(folder: Path, began: float, ended: float) -> Found:
    """Return what became of what was published from the beginning of a fault to its end, as of now."""
    began -= SETTLED
    during = [each for each in published(folder) if began <= each.at < ended]
    moves, done = {each.move for each in during if each.stored}, handled(folder)
    times = Counter((each.handler, each.move) for each in done if each.move in moves)
    return Found(
        stored=len(moves),
        failed=sum(not each.stored for each in during),
        lost=sum((handler, move) not in times for handler in HANDLERS for move in moves),
        duplicates=sum(times.values()) - len(times),
        out_of_order=_out_of_order(done, moves),
        worst_publish=max((each.took for each in during), default=0.0),
        longest_silence=max(_silence(done, handler, began, ended) for handler in HANDLERS),
    )


def _out_of_order(done: list[Handled], moves: set[Move]) -> int:
    """Count the first successes of the ordered handler that came after one of a later event of their parcel."""
    firsts: dict[str, dict[int, None]] = defaultdict(dict)
    for each in done:
        if each.handler == "in_order":
            firsts[each.move[0]].setdefault(each.move[1])
    late = 0
    for parcel, numbers in firsts.items():
        newest = 0
        for number in numbers:
            late += number < newest and (parcel, number) in moves
            newest = max(newest, number)
    return late


def _silence(done: list[Handled], handler: str, began: float, ended: float) -> float:
    """Return the longest time in which a handler did nothing."""
    times = [began, *(each.at for each in done if each.handler == handler and began < each.at < ended), ended]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def now() -> float:
    """Return the time by the clock of the books."""
    return time.monotonic()
