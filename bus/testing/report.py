"""What a simulation tells: what happened, a line each with its time, and where a scenario failed."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..worker import first_leaf
from .faults import Fault


MOST_SHOWN: Final = 60
"""Lines of what happened that are shown, the last ones."""


class Story(list[str]):
    """What happened in a run, a line each, with the time that its loop had."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._at: list[float] = []
        self._faults: set[int] = set()

    def append(self, line: str) -> None:
        """Add what happened just now."""
        self._at.append(self._loop.time())
        super().append(line)

    def fault(self, line: str) -> None:
        """Add what the simulation did."""
        self._faults.add(len(self))
        self.append(line)

    def lines(self) -> list[str]:
        """Return what is shown of it: each line with its time from the first on, and a mark at the faults."""
        first = self._at[0] if self._at else 0.0
        shown = [
            f"{'!' if n in self._faults else ' '} {at - first:9.3f} s  {line}"
            for n, (at, line) in enumerate(zip(self._at, self, strict=True))
        ]
        cut = [f"… {len(shown) - MOST_SHOWN} lines before"] if len(shown) > MOST_SHOWN else []
        return cut + shown[-MOST_SHOWN:]


def report(
    seed: int,
    build: Callable[..., Any],
    scenario: Callable[..., Any],
    faults: Sequence[Fault],
    error: BaseException,
    story: Story,
) -> str:
    """Return what a failed run is told by: its seed, its error and where, the faults, the story, how to repeat it."""
    error = first_leaf(error)
    told = str(error).strip().splitlines()
    return "\n".join(
        [
            f"seed={seed}: {type(error).__name__}" + (f": {told[0]}" if told else ""),
            *(f"  {line}" for line in _where(error, scenario)),
            f"the fewest faults that make it fail: {'; '.join(map(str, faults)) or 'none, the order of steps will do'}",
            "what happened:",
            *(f"  {line}" for line in story.lines()),
            f"to repeat it: simulate({_named(build, 'build')}, {_named(scenario, 'scenario')}, seed={seed})",
        ]
    )


def _where(error: BaseException, scenario: Callable[..., Any]) -> list[str]:
    """Return the line of the scenario, or else of any code, that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    home = getattr(getattr(inspect.unwrap(scenario), "__code__", None), "co_filename", None)
    found = [frame for frame in frames if frame.filename == home] or frames
    if not found:
        return []
    path = Path(found[-1].filename)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return [f"{short}:{found[-1].lineno}, in {found[-1].name}: {found[-1].line}"]


def _named(function: Callable[..., Any], otherwise: str) -> str:
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else otherwise
