"""The book: what all ledgers together say, entry by entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

from bus import Settings

from .events import DOOMED, WANTED
from .ledger import Entry


Work: TypeAlias = tuple[str, str]
"""A handler, and the id under which an event was published that it must handle, or its follow-up."""
ANY: Final = "any"
"""Stands for every handler that wants an event, where the event still waits to be sent to them."""
ANSWERS_WITHIN: Final = Settings().publish_timeout + 15
"""Seconds within which a publish ends on a very busy machine."""
BACK_WITHIN: Final = 15.0
"""Seconds after its deletion in which a queue is there again on a very busy machine; 3 are the most that were seen."""
STRAGGLING: Final = 5.0
"""Seconds that an event of a queue may be done later than one that came after it: retries take 2, in parallel."""
HELD: Final = ("connections forgotten", "channels dead", "consumers cancelled")
"""The faults that go on after their end: the broker finds out later that nobody has what it gave to somebody."""


@dataclass(slots=True)
class Published:
    """An event that a publisher published."""

    type: str
    stream: str
    number: int
    at: float
    delay: float
    asked: float
    confirmed: float | None = None
    unsure: int = 0
    refused: int = 0

    @property
    def due(self) -> float:
        """When it comes to the queues at the earliest."""
        return self.at + self.delay

    @property
    def there(self) -> float:
        """When it was in the queues for sure, if it was."""
        return float("inf") if self.confirmed is None else self.confirmed + self.delay

    @property
    def ended(self) -> bool:
        """Whether a publish of it returned or raised."""
        return self.confirmed is not None or self.unsure + self.refused > 0

    @property
    def handlers(self) -> tuple[str, ...]:
        """Who must handle it."""
        return WANTED[self.type]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that had its effect: its name, when, and how often the broker says that the message came before."""

    name: str
    worker: str
    started: float
    finished: float
    redelivered: int


@dataclass(slots=True)
class Fault:
    """A fault that was injected; `healed` is when it ended, and `deleted` the queue that went with it."""

    kind: str
    begun: float
    healed: float = float("inf")
    deleted: str = ""


@dataclass
class Book:
    """What was published, what was handled, and what `open` work there is: confirmed and neither done nor given up."""

    published: dict[str, Published] = field(default_factory=dict)
    runs: dict[Work, list[Run]] = field(default_factory=lambda: defaultdict(list))
    given_up: set[Work] = field(default_factory=set)
    open: set[Work] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """When the newest event that a handler or worker had the effect of was published; a publisher's last confirm."""
    _started: dict[tuple[str, int], Entry] = field(default_factory=dict)

    def add(self, entries: Iterable[Entry]) -> None:
        """Enter what is new."""
        for entry in entries:
            match entry["what"]:
                case "publishing":
                    self.published[entry["ref"]] = Published(
                        entry["type"], entry["stream"], entry["number"], entry["at"], entry["delay"], entry["at"]
                    )
                case "unsure":
                    self._unsure(entry)
                case "confirmed":
                    self._confirmed(entry)
                case "started":
                    self._started[entry["who"], entry["run"]] = entry
                case "finished":
                    self._finished(entry)
                case "gave up":
                    self.given_up.add((entry["handler"], entry["ref"]))
                    self.open.discard((entry["handler"], entry["ref"]))
                case "fault":
                    self.faults.append(Fault(entry["kind"], entry["at"], deleted=entry["deleted"]))
                case "healed":
                    self.faults[-1].healed = entry["at"]
                case "problem":
                    self.problems.append(entry["told"])

    def _ended(self, entry: Entry) -> Published:
        published = self.published[entry["ref"]]
        if (took := entry["at"] - published.asked) > ANSWERS_WITHIN:
            self.problems.append(f"the publish of {entry['ref']} took {took:.0f} s")
        published.asked = entry["at"]
        return published

    def _unsure(self, entry: Entry) -> None:
        published = self._ended(entry)
        if entry["error"] == "BusUnavailable":
            published.unsure += 1
        else:
            published.refused += 1
            self.problems.append(f"the publish of {entry['ref']} raised {entry['error']}: {entry['told']}")

    def _confirmed(self, entry: Entry) -> None:
        published = self._ended(entry)
        published.confirmed = self.newest[entry["who"].partition("/")[0]] = entry["at"]
        for handler in owing(published):
            work = (handler, entry["ref"])
            if work not in self.runs and work not in self.given_up:
                self.open.add(work)

    def _finished(self, entry: Entry) -> None:
        work = (entry["handler"], entry["ref"])
        started = self._started.pop((entry["who"], entry["run"]))
        worker = entry["who"].partition("/")[0]
        name = f"{entry['who']}.{entry['run']}"
        self.runs[work].append(Run(name, worker, started["at"], entry["at"], started["redelivered"]))
        self.open.discard(work)
        at = self.published[entry["ref"]].at
        for one in (entry["handler"], worker):
            self.newest[one] = max(self.newest[one], at)

    def first(self, work: Work) -> float | None:
        """Return when a handler first succeeded with an event."""
        runs = self.runs.get(work)
        return min(run.finished for run in runs) if runs else None


def owing(published: Published) -> tuple[str, ...]:
    """Return the handlers that must handle an event, or give it up."""
    return (*published.handlers, *filter(None, [DOOMED.get(published.type)]))


def destroyed(book: Book) -> Iterator[Work]:
    """Yield what went with a deleted queue: in it, or due before it was there again for sure, and never handled."""
    for before, fault in pairwise((Fault("none", 0.0, 0.0), *book.faults)):
        if not fault.deleted:
            continue
        wanted = {ref: one for ref, one in book.published.items() if fault.deleted in one.handlers}
        since, again = _since(book, wanted, before, fault), _again(book, wanted, fault)
        for ref, one in wanted.items():
            if since < one.there and one.due <= again and (fault.deleted, ref) not in book.runs:
                yield fault.deleted, ref


def _since(book: Book, wanted: Mapping[str, Published], before: Fault, fault: Fault) -> float:
    """Return when the oldest that could have been in a deleted queue came.

    What came before the end of the fault before was done, or was lost: that is waited for. A queue hands out the oldest
    first.
    """
    if before.kind in HELD:
        return before.healed
    done = ((book.first((fault.deleted, ref)), one.due) for ref, one in wanted.items())
    newest = max((due for first, due in done if first is not None and first <= fault.begun), default=0.0)
    return max(before.healed, newest - STRAGGLING)


def _again(book: Book, wanted: Mapping[str, Published], fault: Fault) -> float:
    """Return when a deleted queue was there again for sure, or should have been."""
    handled = (one for ref, one in wanted.items() if one.due > fault.healed and (fault.deleted, ref) in book.runs)
    return min((fault.healed + BACK_WITHIN, *(one.there for one in handled)))
