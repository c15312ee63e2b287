"""Faults: what a simulation does to a worker and its broker, each at its moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias, get_args


Kind: TypeAlias = Literal[
    "crash", "stop", "connection lost", "outage", "clock jump", "slow", "duplicate", "late", "refused", "unsure"
]
COUNTED: Final[Mapping[Kind, str]] = {
    "crash": "step",
    "stop": "step",
    "connection lost": "step",
    "outage": "step",
    "clock jump": "step",
    "slow": "step",
    "duplicate": "copy",
    "late": "copy",
    "refused": "publish",
    "unsure": "publish",
}
"""What is counted until the moment of each kind comes: steps of the worker's tasks, copies, or calls of publish."""
LONGEST: Final[Mapping[Kind, float]] = {
    "crash": 5,
    "stop": 5,
    "connection lost": 0,
    "outage": 30,
    "clock jump": 7200,
    "slow": 90,
    "duplicate": 5,
    "late": 5,
    "refused": 0,
    "unsure": 0,
}
"""Seconds that a fault of each kind lasts at most; a clock jumps so far ahead, or back."""
MOST: Final = 5
"""Faults in one run, at most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `kind` tells what, `at` when, in what its kind counts, and `seconds` how long."""

    kind: Kind
    at: int
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" ({self.seconds:.3g} s)" if self.seconds else ""
        return f"{self.kind} at {COUNTED[self.kind]} {self.at}{lasting}"


def chosen(random: Random, counts: Mapping[str, int]) -> tuple[Fault, ...]:
    """Return faults by chance; `counts` tells how far a run without any faults counts."""
    faults = []
    for _ in range(random.randint(1, MOST)):
        kind = random.choice(get_args(Kind))
        # what a fault makes happen comes after what would have happened without it
        at = random.randint(1, max(1, round(counts.get(COUNTED[kind], 0) * 1.3)))
        seconds = random.random() ** 2 * LONGEST[kind]
        if kind == "clock jump":
            seconds *= random.choice((-1, 1))
        faults.append(Fault(kind, at, seconds))
    return tuple(sorted(faults, key=lambda fault: (COUNTED[fault.kind], fault.at)))


class Course:
    """The course of one run: counts, and tells which faults are due."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.counts: Counter[str] = Counter()
        self._faults: dict[tuple[str, int], list[Fault]] = {}
        for fault in faults:
            self._faults.setdefault((COUNTED[fault.kind], fault.at), []).append(fault)

    def due(self, what: str) -> list[Fault]:
        """Count one more, and return the faults whose moment it is."""
        self.counts[what] += 1
        return self._faults.get((what, self.counts[what]), [])
