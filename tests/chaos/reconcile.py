"""From the book to the verdict: what was lost, is stuck, ran twice, or came out of order. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from .book import ANY, STRAGGLING, Book, Fault, Work, destroyed, owing
from .events import DOOMED, FOLLOWED, IDEMPOTENT


PROMISES: Final = (
    "lost",
    "stuck",
    "given_up",
    "effect_twice",
    "run_after_commit",
    "disorder",
    "problems",
)
"""What must be empty in a verdict."""


@dataclass
class Verdict:
    """What became of everything; what `PROMISES` names must be empty.

    `effect_twice` is what is twice in a store that must have it once; `run_after_commit` what had its effect in a run
    of an idempotent handler that came to it after another run had committed.
    """

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
    effect_twice: list[Work] = field(default_factory=list)
    run_after_commit: list[Work] = field(default_factory=list)
    disorder: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return any(getattr(self, promise) for promise in PROMISES)


def reconcile(
    book: Book,
    letters: Mapping[Work, float] = MappingProxyType({}),
    left: Collection[Work] = (),
    once: Mapping[Work, Sequence[str]] = MappingProxyType({}),
) -> Verdict:
    """Tell what became of everything that was published.

    `letters` are the dead letters and when they failed last, `left` is still in queues, `once` the names of the runs
    that a store has an effect of, which must be one each.
    """
    verdict = Verdict(published=len(book.published), problems=list(book.problems))
    gone = set(destroyed(book))
    for ref, published in book.published.items():
        done = [(handler, ref) in book.runs or (handler, ref) in letters for handler in owing(published)]
        if published.confirmed is None:
            verdict.unsure += published.unsure > 0
            verdict.arrived += any(done)
            if not published.ended:
                verdict.problems.append(f"the publish of {ref} never ended")
            take, finish = ((handler, ref) for handler in FOLLOWED)
            if take in book.runs and finish not in book.runs and finish not in letters:
                verdict.lost.append(finish)
            continue
        verdict.confirmed += 1
        for handler, one in zip(owing(published), done, strict=True):
            work = (handler, ref)
            if work in gone:
                verdict.destroyed.append(work)
            elif not one or (handler == IDEMPOTENT and work not in once):
                (verdict.stuck if work in left or (ANY, ref) in left else verdict.lost).append(work)
    for work, failed in letters.items():
        if work[0] in DOOMED.values():
            verdict.dead_lettered += 1
        elif work not in gone or not _after_deletion(book, work[0], failed):
            verdict.given_up.append(work)
    verdict.effect_twice = [work for work, runs in once.items() if len(runs) > 1]
    verdict.run_after_commit = list(_after_commit(book, once))
    _duplicates(book, verdict)
    verdict.disorder = list(_disorder(book))
    return verdict


def _after_deletion(book: Book, handler: str, failed: float) -> bool:
    """Tell whether a handler's queue was deleted before something failed, or while its retry waited."""
    return any(fault.deleted == handler and failed > fault.begun - STRAGGLING for fault in book.faults)


def _after_commit(book: Book, once: Mapping[Work, Sequence[str]]) -> Iterator[Work]:
    """Yield what had an effect after that which was committed.

    A run enters its effect while it has the store's only transaction, so the committed one must be the last.
    """
    for work, committed in once.items():
        runs = sorted(book.runs.get(work, ()), key=lambda run: run.finished)
        if runs and runs[-1].name not in committed:
            yield work


def _duplicates(book: Book, verdict: Verdict) -> None:
    """Count the runs after the first by the fault before them, and by whether the broker says that they were before."""
    faults = sorted(book.faults, key=lambda fault: fault.begun)
    for runs in book.runs.values():
        verdict.effects += len(runs)
        for run in sorted(runs, key=lambda run: run.finished)[1:]:
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
