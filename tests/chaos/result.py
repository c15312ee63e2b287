"""The result of an attack, as JSON; several become one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from typing import Any, Final, TypeAlias

from .book import Fault
from .reconcile import PROMISES, Verdict
from .recovery import Recovery


Result: TypeAlias = dict[str, Any]

MEASURES: Final = ("publish", "handle", "everywhere", "caught_up")
SHOWN: Final = 20
"""How many examples of a broken promise are kept."""


def result(verdict: Verdict, recovered: Sequence[tuple[Fault, Recovery]], **about: object) -> Result:
    """Return the result of one attack."""
    broken = {promise: [str(one) for one in getattr(verdict, promise)] for promise in PROMISES}
    totals = {name: getattr(verdict, name) for name in ("published", "confirmed", "unsure", "arrived", "effects")}
    totals |= {"destroyed": len(verdict.destroyed), "dead_lettered": verdict.dead_lettered}
    totals |= {promise: len(all) for promise, all in broken.items()}
    kinds: dict[str, Any] = {}
    for fault, recovery in recovered:
        kind = kinds.setdefault(fault.kind, _kind())
        kind["times"] += 1
        for measure, seconds in asdict(recovery).items():
            kind[measure].append(None if seconds == inf else round(seconds, 3))
    for name in ("given_again", "second_copy"):
        for fault_kind, runs in getattr(verdict, name).items():
            kinds.setdefault(fault_kind, _kind())[name] += runs
    examples = {promise: all[:SHOWN] for promise, all in broken.items() if all}
    return {"about": [about], "totals": totals, "faults": kinds, "broken": examples}


def merged(results: Sequence[Result]) -> Result:
    """Return several results as one."""
    totals: Counter[str] = Counter()
    kinds: dict[str, Any] = {}
    examples: dict[str, list[str]] = {}
    for one in results:
        totals.update(one["totals"])
        for name, of_kind in one["faults"].items():
            kind = kinds.setdefault(name, _kind())
            for key, value in of_kind.items():
                kind[key] = kind[key] + value
        for promise, broken in one["broken"].items():
            examples[promise] = examples.get(promise, []) + broken
    about = [run for one in results for run in one["about"]]
    return {"about": about, "totals": dict(totals), "faults": kinds, "broken": examples}


def _kind() -> dict[str, Any]:
    return {"times": 0, "given_again": 0, "second_copy": 0} | {measure: [] for measure in MEASURES}
