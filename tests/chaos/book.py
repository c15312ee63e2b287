"""The book: what all ledgers together say, entry by entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from .events import DOOMED, WANTED
from .ledger import Entry


Work: TypeAlias = tuple[str, str]
"""A handler, and the id under which an event was published that it must handle, or its follow-up."""
ANY: Final = "any"
"""Stands for every handler that wants an event, where the event still waits to be sent to them."""
GOING_BACK: Final = 60.0
"""Seconds before a queue was deleted in which what was lost with it was published at the earliest."""


@dataclass(slots=True)
class Published:
    """An event that a publisher published."""

    type: str
    stream: str
    number: int
    at: float
    delay: float
    confirmed: float | None = None
    unsure: int = 0

    @property
    def due(self) -> float:
        """When it comes to the queues at the earliest."""
        return self.at + self.delay

    @property
    def handlers(self) -> tuple[str, ...]:
        """Who must handle it."""
        return WANTED[self.type]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that had its effect: whose, when, and how often the broker says that the message came before."""

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
                        entry["type"], entry["stream"], entry["number"], entry["at"], entry["delay"]
                    )
                case "unsure":
                    self.published[entry["ref"]].unsure += 1
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

    def _confirmed(self, entry: Entry) -> None:
        published = self.published[entry["ref"]]
        published.confirmed = self.newest[entry["who"].partition("/")[0]] = entry["at"]
        for handler in owing(published):
            work = (handler, entry["ref"])
            if work not in self.runs and work not in self.given_up:
                self.open.add(work)

    def _finished(self, entry: Entry) -> None:
        work = (entry["handler"], entry["ref"])
        started = self._started.pop((entry["who"], entry["run"]))
        worker = entry["who"].partition("/")[0]
        self.runs[work].append(Run(worker, started["at"], entry["at"], started["redelivered"]))
        self.open.discard(work)
        at = self.published[entry["ref"]].at
        for one in (entry["handler"], worker):
            self.newest[one] = max(self.newest[one], at)

    def first(self, work: Work) -> float | None:
        """Return when a handler first succeeded with an event."""
        runs = self.runs.get(work)
        return runs[0].finished if runs else None


def owing(published: Published) -> tuple[str, ...]:
    """Return the handlers that must handle an event, or give it up."""
    return (*published.handlers, *filter(None, [DOOMED.get(published.type)]))


def destroyed(book: Book) -> Iterator[Work]:
    """Yield what went with a deleted queue: due before it was there again for sure, and never handled."""
    for fault in book.faults:
        if not fault.deleted:
            continue
        wanted = [(ref, one) for ref, one in book.published.items() if fault.deleted in one.handlers]
        again = min(
            (
                one.confirmed + one.delay
                for ref, one in wanted
                if one.due > fault.healed and one.confirmed is not None and (fault.deleted, ref) in book.runs
            ),
            default=float("inf"),
        )
        for ref, one in wanted:
            if fault.begun - GOING_BACK <= one.at and one.due <= again and (fault.deleted, ref) not in book.runs:
                yield fault.deleted, ref
