"""Flow: how much of one handler's queue its worker takes: all that it may, one at a time, or nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
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
        self._changed = asyncio.Event()

    @property
    def held(self) -> Mapping[str, int]:
        """Return what holds the handler back, and to how many unsettled deliveries."""
        return MappingProxyType(self._held)

    @property
    def stopped(self) -> bool:
        """Whether nothing may begin."""
        return 0 in self._held.values()

    def most(self, allowed: int) -> int:
        """Return how many deliveries may be unsettled, where `allowed` are without a hold."""
        return min((allowed, *self._held.values()))

    def hold(self, why: str, unsettled: int = 0) -> None:
        """Hold the handler back to so many unsettled deliveries, 0 by default, until `release` of the same reason."""
        self._held[why] = unsettled
        self._tell()

    def release(self, why: str) -> None:
        """End a hold; nothing happens where there is none."""
        if self._held.pop(why, None) is not None:
            self._tell()

    async def changed(self) -> None:
        """Wait for the next change of what is held."""
        await self._changed.wait()

    def _tell(self) -> None:
        # everyone who waits is woken, and whoever asks again waits for the next change
        self._changed.set()
        self._changed = asyncio.Event()
