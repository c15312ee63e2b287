"""How soon all was well again after each fault. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from .book import GOING_BACK, Book, Fault, Published


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the end of a fault; infinite, if it did not happen before the next.

    `publish`: until the slowest publisher had a confirm. `handle`: until the first effect of an event published
    since; `everywhere`: until each handler, and each worker, had one. `caught_up`: until all that was
    published before had its effects; what was delayed counts from when it is due.
    """

    publish: float
    handle: float
    everywhere: float
    caught_up: float


class Timeline:
    """The events by their time, so that each fault looks at its own part."""

    def __init__(self, book: Book) -> None:
        self._book = book
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
    publishers, handlers, workers = (defaultdict[str, float](lambda: inf) for _ in range(3))
    late = 0.0
    for ref, one in timeline.between(healed - GOING_BACK, end):
        publisher = ref.partition(".")[0]
        if one.confirmed is not None and one.confirmed > healed:
            publishers[publisher] = min(publishers[publisher], one.confirmed - healed)
        for handler in one.handlers:
            runs = book.runs.get((handler, ref))
            if runs and one.at > healed:
                after = runs[0].finished - healed
                handlers[handler] = min(handlers[handler], after)
                workers[runs[0].worker] = min(workers[runs[0].worker], after)
            elif runs:
                late = max(late, runs[0].finished - max(healed, one.at + one.delay))
    slowest = max((*handlers.values(), *workers.values()), default=inf)
    return Recovery(max(publishers.values(), default=inf), min(handlers.values(), default=inf), slowest, late)
