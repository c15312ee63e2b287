"""A story for the books: ledgers in which something is planted."""

from __future__ import annotations

from typing import Any

from .book import Book
from .ledger import Entry
from .reconcile import Verdict, reconcile


class Story:
    """Entries of a publisher and a worker, a second apart unless told otherwise."""

    def __init__(self) -> None:
        self.book = Book()
        self.now = 0.0

    def tell(self, what: str, who: str = "chaos/1", **more: Any) -> None:
        self.now += 1
        entry: Entry = {"at": self.now, "what": what, "who": who, **more}
        self.book.add([entry])

    def publishing(
        self, ref: str, type: str = "chaos.later", stream: str = "a", number: int = 1, delay: float = 0.0
    ) -> None:
        self.tell("publishing", "publisher0/1", ref=ref, type=type, stream=stream, number=number, delay=delay)

    def published(
        self, ref: str, type: str = "chaos.later", stream: str = "a", number: int = 1, delay: float = 0.0
    ) -> None:
        self.publishing(ref, type, stream, number, delay)
        self.tell("confirmed", "publisher0/1", ref=ref)

    def handled(self, ref: str, handler: str = "later.work", redelivered: int = 0, worker: str = "worker0/1") -> None:
        run = self.started(ref, handler, redelivered, worker)
        self.tell("finished", worker, run=run, handler=handler, ref=ref)

    def started(self, ref: str, handler: str = "later.work", redelivered: int = 0, worker: str = "worker0/1") -> int:
        run = int(self.now)
        self.tell("started", worker, run=run, handler=handler, ref=ref, attempt=1, redelivered=redelivered)
        return run

    def fault(self, kind: str, deleted: str = "") -> None:
        self.tell("fault", kind=kind, deleted=deleted)
        self.tell("healed")

    def verdict(
        self,
        *letters: tuple[str, str],
        left: set[tuple[str, str]] | None = None,
        once: dict[tuple[str, str], list[str]] | None = None,
    ) -> Verdict:
        stored = {work: [runs[-1].name] for work, runs in self.book.runs.items() if work[0] == "once.work"}
        return reconcile(self.book, dict.fromkeys(letters, self.now), left or set(), stored if once is None else once)
