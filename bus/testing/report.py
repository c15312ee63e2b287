"""What a simulation tells: what happened, a line each with its time, and where a scenario failed."""

from __future__ import annotations

import asyncio
import inspect
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ..failure import first_leaf


MOST_SHOWN: Final = 60
"""Lines of what happened that are shown."""
HERE: Final = Path(__file__).parent
AROUND: Final = 3
"""Lines before and after each fault that are shown, however long ago it happened."""
MOST_TOLD: Final = 20
"""Lines of an error that are shown, behind its first."""


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
        """Return what is shown of it: each line with its time from the first on, and a mark at the faults.

        Of a long one these are the faults, what happened around them, and the last lines.
        """
        first = self._at[0] if self._at else 0.0
        shown: list[str] = []
        cut = 0
        kept = self._kept()
        for n, (at, line) in enumerate(zip(self._at, self, strict=True)):
            if n not in kept:
                cut += 1
                continue
            if cut:
                shown.append(f"… {cut} lines")
                cut = 0
            shown.append(f"{'!' if n in self._faults else ' '} {at - first:9.3f} s  {line}")
        return shown

    def _kept(self) -> set[int]:
        around = {n for fault in self._faults for n in range(fault - AROUND, fault + AROUND + 1) if 0 <= n < len(self)}
        for n in reversed(range(len(self))):
            if len(around) >= MOST_SHOWN:
                break
            around.add(n)
        return around


def report(
    seed: int,
    build: Callable[..., Any],
    scenario: Callable[..., Any],
    faults: str,
    error: BaseException,
    story: Story,
    notes: Sequence[str],
) -> str:
    """Return what a failed run is told by: its seed, its error and where, the faults, the story, how to repeat it."""
    error = first_leaf(error)
    told, *rest = [line for line in str(error).splitlines() if line.strip()] or [""]
    more = textwrap.dedent("\n".join(rest)).splitlines()
    cut = [f"… {len(more) - MOST_TOLD} lines"] if len(more) > MOST_TOLD else []
    return "\n".join(
        [
            f"seed={seed}: {type(error).__name__}" + (f": {told}" if told else ""),
            *(f"  {line}" for line in more[:MOST_TOLD] + cut),
            *(f"  {line}" for line in _where(error, scenario)),
            faults,
            "what happened:",
            *(f"  {line}" for line in story.lines()),
            *notes,
            f"to repeat it: simulate({_named(build, 'build')}, {_named(scenario, 'scenario')}, seed={seed})",
        ]
    )


def _where(error: BaseException, scenario: Callable[..., Any]) -> list[str]:
    """Return the line of the scenario, or else of any code, that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    home = getattr(getattr(inspect.unwrap(scenario), "__code__", None), "co_filename", None)
    found = [frame for frame in frames if frame.filename == home]
    found = found or [frame for frame in frames if Path(frame.filename).parent != HERE]
    if not found:
        return []
    path = Path(found[-1].filename)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return [f"{short}:{found[-1].lineno}, in {found[-1].name}: {found[-1].line}"]


def _named(function: Callable[..., Any], otherwise: str) -> str:
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else otherwise
