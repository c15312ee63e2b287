"""Pace: how fast one worker begins the runs of one handler. It delays, and never fails anything."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .errors import ConfigurationError
from .flow import Flow


T = TypeVar("T")

PER: Final = {"s": 1, "m": 60, "h": 3600}
WRITTEN: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)/([smh])")
SLOWEST: Final = 6 / 3600
"""Runs a second: what waits for its turn is held by the worker, and the broker takes it back after half an hour."""
BURST: Final = 0.1
"""Seconds that a handler may be behind its rate and catch up on: so much of it begins at once, after a silence."""
HOLD: Final = "rate"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many runs a second, and how that was written."""

    written: str
    per_second: float

    def __str__(self) -> str:
        return self.written


def rate(written: str) -> Rate:
    """Read a rate such as "100/s", "20/m" or "6/h". Raises ConfigurationError for any other text."""
    found = WRITTEN.fullmatch(written) if isinstance(written, str) else None
    if found is None:
        raise ConfigurationError(f'rate={written!r}; write a number and its time: "100/s", "20/m" or "6/h"')
    per_second = float(found[1]) / PER[found[2]]
    if not SLOWEST <= per_second < math.inf:
        raise ConfigurationError(
            f'rate={written!r}; it must be "6/h" or more, because a broker takes a message back after 30 minutes. '
            "Publish with a delay what may wait so long."
        )
    return Rate(written, per_second)


class Pace:
    """Lets runs begin at a rate. The waiting take turns, and one that gives up costs nobody anything."""

    def __init__(self, rate: Rate) -> None:
        self._interval = 1 / rate.per_second
        self._due = -math.inf
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return once a run may begin; `free` says whether it still may."""
        async with self._turn:
            while not self.free():
                await asyncio.sleep(self._due - asyncio.get_running_loop().time())

    def free(self) -> bool:
        """Tell whether a run may begin now."""
        return self._due <= asyncio.get_running_loop().time()

    def take(self) -> None:
        """Let a run begin: the next one may an interval later."""
        self._due = max(self._due, asyncio.get_running_loop().time() - BURST) + self._interval


def fitted(rate: Rate, flow: Flow, most: int, process: Callable[[Any], Awaitable[T]]) -> Callable[[Any], Awaitable[T]]:
    """Let a handler take no more than it begins in a second, and than runs; return the process that sees to it.

    What waits for its turn here is what a replica could have run meanwhile. So the handler takes a second's worth at
    first, and one more whenever all that it took is running: of long runs many are under way at any rate.
    """
    running = 0
    if (at_first := math.ceil(rate.per_second)) < most:
        flow.hold(HOLD, at_first)

    async def run(delivery: Any) -> T:
        nonlocal running
        running += 1
        if running >= flow.held.get(HOLD, most):
            flow.hold(HOLD, running + 1) if running + 1 < most else flow.release(HOLD)
        try:
            return await process(delivery)
        finally:
            running -= 1

    return run
