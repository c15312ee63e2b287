"""Figures of the containment benchmark: from what was published and handled to ratios and a table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final


GOAL: Final = (0.95, 1.2)
"""At least so much of the throughput, and at most so many times the p99."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the healthy services did in one window of time. Latencies are in milliseconds."""

    published: int
    handled: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Run:
    """One fault on one contender: a window without it, and one with it, of the same processes."""

    fault: str
    contender: str
    before: Window
    during: Window

    @property
    def throughput(self) -> float:
        """What of the published was handled in the window, against the same without the fault."""
        return (self.during.handled / self.during.published) / (self.before.handled / self.before.published)

    @property
    def p99(self) -> float:
        """How many times the p99 without the fault."""
        return self.during.p99 / self.before.p99

    def as_json(self) -> dict[str, Any]:
        """Return what `run_of` reads."""
        return asdict(self)


def run_of(values: Mapping[str, Any]) -> Run:
    """Return the run that was written as JSON."""
    before, during = Window(**values["before"]), Window(**values["during"])
    return Run(values["fault"], values["contender"], before, during)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of the ordered ones do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def window(
    services: Iterable[tuple[Sequence[float], Mapping[float, float]]], begin: float, end: float, seen_until: float
) -> Window:
    """Return what services did in a window; of each, when it was published to, and when each of these was handled.

    The latency is of what was published in the window. What was not handled has waited until the end of the view.
    """
    published = handled = 0
    waited: list[float] = []
    for sent, done in services:
        mine = [at for at in sent if begin <= at < end]
        published += len(mine)
        handled += sum(begin <= each < end for each in done.values())
        waited += [(done.get(at, seen_until) - at) * 1e3 for at in mine]
    waited.sort()
    return Window(published, handled, percentile(waited, 50), percentile(waited, 99))


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of the runs of one fault on one contender."""

    throughput: float
    p99: float
    before_ms: float
    during_ms: float

    @property
    def contained(self) -> bool:
        """Whether the goal is met."""
        return self.throughput >= GOAL[0] and self.p99 <= GOAL[1]


def rows(runs: Iterable[Run]) -> dict[tuple[str, str], Row]:
    """Return the medians by fault and contender."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.fault, run.contender), []).append(run)
    return {key: _medians(of_one) for key, of_one in found.items()}


def _medians(runs: list[Run]) -> Row:
    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    return Row(
        throughput=middle(run.throughput for run in runs),
        p99=middle(run.p99 for run in runs),
        before_ms=middle(run.before.p99 for run in runs),
        during_ms=middle(run.during.p99 for run in runs),
    )


def table(found: Mapping[tuple[str, str], Row], titles: Mapping[str, str], contenders: Sequence[str]) -> str:
    """Return the table in Markdown: a line for each fault, throughput and p99 of each contender."""
    head = [f"{name}: throughput | p99 | ms" for name in contenders]
    lines = [f"| fault | {' | '.join(head)} |", f"| --- |{' --: |' * 3 * len(contenders)}"]
    for fault, title in titles.items():
        cells = [_cells(found.get((fault, contender))) for contender in contenders]
        if any((fault, contender) in found for contender in contenders):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row | None) -> str:
    if row is None:
        return " | | "
    return f"{row.throughput:.1%} | × {_short(row.p99)} | {_short(row.before_ms)} → {_short(row.during_ms)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
