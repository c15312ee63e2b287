"""What was acked last on a channel that is gone: the broker may not have read it, and then sends it again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from math import inf
from typing import Final, TypeAlias
from weakref import WeakValueDictionary


Settled: TypeAlias = tuple[str, str, int, str, str]
"""A message's source and id, the attempt, the exchange that it came by, and which replay it comes from, if from any."""
LAST: Final = 180.0
"""Seconds of consuming anew after which what came not again does not come: a broker misses a silent peer in half."""


class Doubts:
    """The deliveries of one subscription whose acks may be lost: their work is done, and a second ack is all they need.

    A broker hands out no more than the prefetch, so it has not read the acks of so many at most: the last ones.
    """

    def __init__(self) -> None:
        self._until: dict[Settled, float] = {}
        self._again: WeakValueDictionary[Settled, object] = WeakValueDictionary()

    @property
    def none(self) -> bool:
        """Whether there is nothing to ask: nearly always."""
        return not self._until

    def add(self, settled: Iterable[Settled]) -> None:
        """Note what was acked last before nothing more could come again."""
        self._until |= dict.fromkeys(settled, inf)

    def taken_again(self, handed: Settled, delivery: object) -> None:
        """Note a delivery that came before, for as long as somebody has it: what has it from before cannot ack it."""
        self._again[handed] = delivery

    @property
    def any_again(self) -> bool:
        """Whether somebody has a delivery that came before: rarely."""
        return bool(self._again)

    def came_again(self, handed: Settled, delivery: object) -> bool:
        """Tell whether somebody has a later delivery of the same."""
        return self._again.get(handed, delivery) is not delivery

    def reached(self) -> None:
        """Count the time, from now on, in which what was noted may come again."""
        now = asyncio.get_running_loop().time()
        self._until = {key: min(until, now + LAST) for key, until in self._until.items() if until > now}

    def settled(self, handed: Settled, *, redelivered: bool) -> bool:
        """Tell whether a delivery was settled before; what comes for the first time, as a replay does, was not."""
        until = self._until.get(handed)
        if until is None:
            return False
        if redelivered and until > asyncio.get_running_loop().time():
            return True
        del self._until[handed]
        return False
