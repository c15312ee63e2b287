"""How soon all was well again after each fault. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Final

from .book import Book, Fault, Published, Work, destroyed


GOING_BACK: Final = 60.0
"""Seconds before the end of a fault in which that was published which was not done by then."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the end of a fault; infinite, if it did not happen before the next, or `caught_up` never.

    `publish`: until the slowest publisher had a confirm. `handle`: until the first effect of an event published
    since; `everywhere`: until each handler, and each worker, that ever had one had one. `caught_up`: until all that was
    published before had its effects; what was delayed counts from when it is due.
    """

    publish: float
    handle: float
    everywhere: float
    caught_up: float


class Timeline:
    """The events by their time, so that each fault looks at its own part."""

    def __init__(self, book: Book) -> None:
        self.gone = set(destroyed(book))
        self.publishers = {ref.partition(".")[0] for ref in book.published}
        self.handlers = {handler for handler, _ in book.runs}
        self.workers = {run.worker for runs in book.runs.values() for run in runs}
        self._all = sorted(book.published.items(), key=lambda pair: pair[1].at)
        self._times = [one.at for _, one in self._all]

    def between(self, begin: float, end: float) -> list[tuple[str, Published]]:
        """Return what was published from one time to another."""
        return self._all[bisect_right(self._times, begin) : bisect_right(self._times, end)]


def recoveries(book: Book) -> list[tuple[Fault, Recovery]]:
    """Return how each fault that ended was recovered from."""
    timeline = Timeline(book)
    ends = [fault for fault in book.faults if fault.healed < inf]
    until = [following.begun for _, following in pairwise(ends)] + [inf]
    return [(fault, _recovery(book, timeline, fault.healed, end)) for fault, end in zip(ends, until, strict=True)]


def _recovery(book: Book, timeline: Timeline, healed: float, end: float) -> Recovery:
    publishers, handlers, workers = (
        dict.fromkeys(names, inf) for names in (timeline.publishers, timeline.handlers, timeline.workers)
    )
    late = 0.0
    for ref, one in timeline.between(healed - GOING_BACK, end):
        publisher = ref.partition(".")[0]
        if one.confirmed is not None and healed < one.confirmed <= end:
            publishers[publisher] = min(publishers[publisher], one.confirmed - healed)
        for work in ((handler, ref) for handler in one.handlers):
            if one.at <= healed:
                late = max(late, _late(book, timeline, work, one, healed))
                continue
            for run in book.runs.get(work, ()):
                if run.finished <= end:
                    after = run.finished - healed
                    handlers[work[0]] = min(handlers[work[0]], after)
                    workers[run.worker] = min(workers[run.worker], after)
    slowest = max((*handlers.values(), *workers.values()), default=inf)
    return Recovery(max(publishers.values(), default=inf), min(handlers.values(), default=inf), slowest, late)


def _late(book: Book, timeline: Timeline, work: Work, one: Published, healed: float) -> float:
    """Return how long after a fault an event was done that was published before."""
    first = book.first(work)
    if first is not None:
        return first - max(healed, one.due)
    owed = one.confirmed is not None and work not in timeline.gone and work not in book.given_up
    return inf if owed else 0.0
