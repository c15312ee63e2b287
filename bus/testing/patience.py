"""Patience: how long a scenario may wait by itself, for what may never come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final

from .generation import in_a_worker


MOST_TURNS: Final = 50_000
"""Turns of the event loop in which a scenario waits by itself: not in `settled`, `advance` or `request`."""
ASLEEP: Final = "nothing is left that could happen"
AWAKE: Final = (
    f"{MOST_TURNS:,} turns of the event loop went by; wait with bus.settled(), or with bus.advance(seconds) a few times"
)


class OutOfPatience(Exception):
    """A scenario was cut off: the message says why, and the traceback where it was."""


class Patience:
    """Lets a scenario play, and cuts it off when its time is up."""

    def __init__(self) -> None:
        self._turns = 0
        self._trusted = 0
        self._scope = asyncio.timeout(None)
        self._over: str | None = None

    async def while_it_lasts(self, scenario: Awaitable[None]) -> None:
        """Await the scenario. Raises OutOfPatience where it was cut off."""
        try:
            async with self._scope:
                await scenario
        except TimeoutError as error:
            if self._over is None or not self._scope.expired():
                raise
            where = error.__cause__.__traceback__ if error.__cause__ is not None else None
            raise OutOfPatience(self._over).with_traceback(where) from None

    @asynccontextmanager
    async def trusted(self) -> AsyncIterator[None]:
        """Count no turns: what the scenario awaits ends by itself. To begin is a turn of its own.

        What a handler awaits is no part of that, and may never come to its end, as its worker may crash.
        """
        if in_a_worker():
            yield
            return
        self.turn()
        if self._over is not None:
            await asyncio.sleep(0)  # what returns at once may be asked again and again, and nothing else would run
        self._trusted += 1
        try:
            yield
        finally:
            self._trusted -= 1

    def turn(self) -> None:
        """Count one turn of the event loop."""
        if not self._trusted:
            self._turns += 1
            if self._turns > MOST_TURNS:
                self._cut(AWAKE)

    def asleep(self) -> None:
        """Note that nothing is left that could happen; one that settles or requests is told of it anyway."""
        if not self._trusted:
            self._cut(ASLEEP)

    def _cut(self, why: str) -> None:
        if self._over is None:
            self._over = why
            self._scope.reschedule(asyncio.get_running_loop().time())
