"""Flow: how much of one handler's queue its worker takes: all that it may, one at a time, or nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType


class Flow:
    """Whoever holds a handler back says why, and how many deliveries may be unsettled meanwhile; the strictest counts.

    Pausing, a breaker and its probing are all this one thing. What runs finishes; with 0, what nobody began yet goes
    back to the queue, where replicas may have it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """How often something happened to the handler in this worker, by what it was: `stale`, …"""
        self._held: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()

    @property
    def held(self) -> Mapping[str, int]:
        """Return what holds the handler back, and to how many unsettled deliveries."""
        return MappingProxyType(self._held)

    @property
    def stopped(self) -> bool:
        """Whether nothing may begin."""
        return 0 in self._held.values()

    @property
    def waits(self) -> bool:
        """Whether nothing may begin now, but will without anybody's doing: no stop is left that has no end."""
        return self.stopped and all(why in self._timers for why, unsettled in self._held.items() if not unsettled)

    def most(self, allowed: int) -> int:
        """Return how many deliveries may be unsettled, where `allowed` are without a hold."""
        return min((allowed, *self._held.values()))

    def hold(self, why: str, unsettled: int = 0, *, seconds: float = 0, then: Callable[[], None] | None = None) -> None:
        """Hold the handler back to so many unsettled deliveries, 0 by default, until `release` of the same reason.

        `then` is called after so many `seconds`, if the hold lasts so long, and the worker too.
        """
        self._forget(why)
        self._held[why] = unsettled
        if then is not None:
            self._timers[why] = asyncio.get_running_loop().call_later(seconds, self._due, why, then)
        self.tell()

    def release(self, why: str) -> None:
        """End a hold; nothing happens where there is none."""
        self._forget(why)
        if self._held.pop(why, None) is not None:
            self.tell()

    def end(self, but: Collection[str] = ()) -> None:
        """Forget every hold `but` these: who held it has ended, and what would have happened later never does."""
        for why in [each for each in self._held if each not in but]:
            self.release(why)

    async def changed(self) -> None:
        """Wait for the next change of what is held."""
        await self._changed.wait()

    def _due(self, why: str, then: Callable[[], None]) -> None:
        del self._timers[why]
        then()

    def _forget(self, why: str) -> None:
        if (timer := self._timers.pop(why, None)) is not None:
            timer.cancel()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        # everyone who waits is woken, and whoever asks again waits for the next change
        self._changed.set()
        self._changed = asyncio.Event()
