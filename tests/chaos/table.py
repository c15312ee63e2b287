"""Results as Markdown tables, several together: `python -m tests.chaos.table RESULT.json …`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any, Final

from .result import MEASURES, Result, merged


Row = tuple[str, ...]

TOTALS: Final = {
    "published": "events published",
    "confirmed": "of these confirmed",
    "unsure": "never confirmed, `BusUnavailable` raised",
    "arrived": "of these arrived all the same",
    "effects": "effects",
    "lost": "**lost**",
    "stuck": "**stuck in a queue**",
    "disorder": "**out of order**",
    "effect_twice": "**effect twice although idempotent**",
    "run_after_commit": "**run again after its commit although idempotent**",
    "given_up": "**dead-lettered though not doomed**",
    "problems": "**processes, publishes and recoveries that did not end as they should**",
    "dead_lettered": "dead-lettered on purpose, all found",
    "destroyed": "deliveries destroyed with a deleted queue",
    "given_again": "runs again, because the broker gave the message again",
    "second_copy": "runs again, because the message was published or copied again",
}
HEADS: Final = ("fault", "times", "a publish returns", "an effect", "everybody", "caught up", "given again", "copied")


def totals(result: Result) -> Iterator[Row]:
    """Yield the rows of what became of everything."""
    seconds = sum(run["seconds"] for run in result["about"])
    yield "minutes of attack", f"{seconds / 60:.0f}"
    yield "faults", str(sum(kind["times"] for kind in result["faults"].values()))
    again = {key: sum(kind[key] for kind in result["faults"].values()) for key in ("given_again", "second_copy")}
    for key, words in TOTALS.items():
        yield words, f"{(result['totals'] | again)[key]:,}"


def recoveries(result: Result) -> Iterator[Row]:
    """Yield the rows of the faults: median and longest seconds of each measure, and the runs that came twice."""
    for name, kind in sorted(result["faults"].items()):
        measured = (_seconds(kind[measure]) for measure in MEASURES)
        yield name, str(kind["times"]), *measured, str(kind["given_again"]), str(kind["second_copy"])


def _seconds(taken: list[Any]) -> str:
    known = [inf if one is None else float(one) for one in taken]
    return " / ".join(_tenths(one) for one in (statistics.median(known), max(known))) if known else ""


def _tenths(seconds: float) -> str:
    return "never" if seconds == inf else f"{seconds:.1f}"


def markdown(result: Result) -> str:
    """Return both tables."""
    lines = ["| | |", "| --- | ---: |", *(_line(row) for row in totals(result)), ""]
    lines += [_line(HEADS), "| --- |" + " ---: |" * (len(HEADS) - 1), *(_line(row) for row in recoveries(result))]
    return "\n".join(lines)


def _line(row: Row) -> str:
    return f"| {' | '.join(row)} |"


if __name__ == "__main__":
    print(markdown(merged([json.loads(Path(name).read_text()) for name in sys.argv[1:]])))
