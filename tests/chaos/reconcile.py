"""From the book to the verdict: what was lost, is stuck, ran twice, or came out of order. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

from .book import ANY, Book, Fault, Work, destroyed, owing
from .events import DOOMED, IDEMPOTENT


@dataclass
class Verdict:
    """What became of everything. `lost`, `stuck`, `given_up` and `disorder` must be empty."""

    published: int = 0
    confirmed: int = 0
    unsure: int = 0
    arrived: int = 0
    effects: int = 0
    lost: list[Work] = field(default_factory=list)
    stuck: list[Work] = field(default_factory=list)
    destroyed: list[Work] = field(default_factory=list)
    dead_lettered: int = 0
    given_up: list[Work] = field(default_factory=list)
    given_again: Counter[str] = field(default_factory=Counter)
    second_copy: Counter[str] = field(default_factory=Counter)
    idempotent_twice: list[Work] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return bool(self.lost or self.stuck or self.given_up or self.idempotent_twice or self.disorder or self.problems)


def reconcile(
    book: Book,
    letters: Collection[Work] = (),
    left: Collection[Work] = (),
    once: Mapping[Work, int] = MappingProxyType({}),
) -> Verdict:
    """Tell what became of everything that was published.

    `letters` are the dead letters, `left` is still in queues, `once` how often a store has what it must have once.
    """
    verdict = Verdict(published=len(book.published), problems=list(book.problems))
    gone = set(destroyed(book))
    for ref, published in book.published.items():
        done = [(handler, ref) in book.runs or (handler, ref) in letters for handler in owing(published)]
        if published.confirmed is None:
            verdict.unsure += 1
            verdict.arrived += any(done)
            continue
        verdict.confirmed += 1
        for handler, one in zip(owing(published), done, strict=True):
            work = (handler, ref)
            if work in gone:
                verdict.destroyed.append(work)
            elif not one or (handler == IDEMPOTENT and work not in once):
                (verdict.stuck if work in left or (ANY, ref) in left else verdict.lost).append(work)
    for handler, ref in letters:
        if handler in DOOMED.values():
            verdict.dead_lettered += 1
        elif (handler, ref) not in gone:
            verdict.given_up.append((handler, ref))
    verdict.idempotent_twice = [work for work, times in once.items() if times > 1]
    _duplicates(book, verdict)
    verdict.disorder = list(_disorder(book))
    return verdict


def _duplicates(book: Book, verdict: Verdict) -> None:
    """Count the runs after the first by the fault before them, and by whether the broker says that they were before."""
    faults = sorted(book.faults, key=lambda fault: fault.begun)
    for runs in book.runs.values():
        verdict.effects += len(runs)
        for run in runs[1:]:
            kind = last(faults, run.started)
            (verdict.given_again if run.redelivered else verdict.second_copy)[kind] += 1


def last(faults: list[Fault], at: float) -> str:
    """Return the kind of the last fault that had begun."""
    return next((fault.kind for fault in reversed(faults) if fault.begun <= at), "none")


def _disorder(book: Book) -> Iterator[str]:
    """Yield the events of ordered streams whose first success came before that of one that was published earlier."""
    streams: dict[str, list[tuple[int, float, str]]] = defaultdict(list)
    for ref, one in book.published.items():
        finished = book.first(("account.apply", ref))
        if finished is not None:
            streams[one.stream].append((one.number, finished, ref))
    for successes in streams.values():
        for (_, before, earlier), (_, after, ref) in pairwise(sorted(successes)):
            if after < before:
                yield f"{ref} before {earlier}"
