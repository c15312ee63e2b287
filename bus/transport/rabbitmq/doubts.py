"""What was acked last on a channel that is gone: the broker may not have read it, and then sends it again."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, TypeAlias


if TYPE_CHECKING:
    from .channel import Channel


Settled: TypeAlias = tuple[str, str, int, str, str]
"""A message's source and id, the attempt, the exchange that it came by, and which replay it comes from, if from any."""
Handing: TypeAlias = "tuple[Channel, int]"
"""The channel that a delivery came by, and its tag there."""
LAST: Final = 180.0
"""Seconds of consuming anew after which what came not again does not come: a broker misses a silent peer in half."""
MOST: Final = 1_000
"""Deliveries that are noted where a prefetch is no more; the oldest go first."""


class Doubts:
    """The deliveries of one subscription whose acks may be lost: their work is done, and a second ack is all they need.

    A broker hands out no more than the prefetch, so it has not read the acks of so many at most: the last ones.
    """

    def __init__(self) -> None:
        self._settled: dict[Settled, None] = {}
        self._again: dict[Settled, Handing] = {}
        self._left: dict[str, float] = {}

    @property
    def none(self) -> bool:
        """Whether there is nothing to ask: nearly always."""
        return not self._settled

    def of(self, queue: str) -> None:
        """Take a queue into account: what is noted may come again by any of them."""
        self._left[queue] = LAST

    def add(self, settled: Collection[Settled]) -> None:
        """Note what was acked last before nothing more could come again."""
        if settled:
            for handed in settled:
                self._settled.pop(handed, None)
                self._settled[handed] = None
            _cut(self._settled, max(MOST, len(settled)))
            self._left = dict.fromkeys(self._left, LAST)

    def worked(self, queue: str, seconds: float) -> None:
        """Count time in which a queue would have handed out what it has; in the end nothing noted comes by any."""
        if self._settled:
            self._left[queue] -= seconds
            if max(self._left.values()) <= 0:
                self._settled.clear()

    def settled(self, handed: Settled, *, redelivered: bool) -> bool:
        """Tell whether a delivery was settled before; what comes for the first time, as a replay does, was not."""
        if handed not in self._settled:
            return False
        if not redelivered:
            del self._settled[handed]
        return redelivered

    def came(self, handed: Settled, handing: Handing) -> None:
        """Note what came before, until it is acked: whoever has it from before cannot ack it."""
        self._again.pop(handed, None)
        self._again[handed] = handing
        _cut(self._again, MOST)

    @property
    def any_again(self) -> bool:
        """Whether anything that came before is not acked yet: rarely."""
        return bool(self._again)

    def came_again(self, handed: Settled, handing: Handing) -> bool:
        """Tell whether the same came once more after this."""
        channel, tag = self._again.get(handed, handing)
        return channel is not handing[0] or tag > handing[1]

    def acked(self, handed: Settled, handing: Handing) -> None:
        """Forget what came before, as it is acked."""
        if self._again.get(handed) == handing:
            del self._again[handed]

    def lost(self) -> None:
        """Forget what came before by channels that are gone: it comes once more."""
        self._again = {handed: handing for handed, handing in self._again.items() if handing[0].error is None}


def _cut(noted: dict[Settled, Any], most: int) -> None:
    while len(noted) > most:
        del noted[next(iter(noted))]
