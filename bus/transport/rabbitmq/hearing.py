"""Whether a consumer still hears its queue, which may forget it without a word.

A queue that is deleted and declared again while a node of its cluster is busy otherwise does not tell every consumer of
it. The channel lives on, the queue is there, and nothing ever comes.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from .channel import Channel


DEAF_AFTER: Final = 60.0
"""Seconds without a delivery, or half as many more, after which a queue is consumed anew; not all at one moment."""


class Hearing:
    """When a channel was last heard. What is unsettled counts as heard: until it is settled, nothing else may come."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._clock = asyncio.get_running_loop().time
        self._before = 0
        self._heard()

    def deaf(self) -> bool:
        """Tell whether nothing came for so long that the queue may have forgotten who consumes it."""
        if self._channel.delivered != self._delivered or not self._channel.settled:
            self._heard()
        return self._clock() >= self._until

    def could(self, granted: int) -> bool:
        """Tell whether anything could come since this was last asked: something did, or there is room for it."""
        channel = self._channel
        came, self._before = channel.delivered > self._before, channel.delivered
        return channel.error is None and (came or channel.delivered - len(channel.acks) < granted)

    def _heard(self) -> None:
        self._delivered = self._channel.delivered
        self._until = self._clock() + DEAF_AFTER * random.uniform(1, 1.5)
