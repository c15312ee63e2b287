"""Answers: replies on their way to whoever requested. Best effort: a requester that is gone is nobody's failure."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from ...errors import AccessRefused
from ...logs import logger
from ...message import Message
from . import envelope
from .channel import Channel, ChannelClosed, Parcel
from .publisher import OPEN_WITHIN
from .supervisor import Backoff, Supervisor
from .wire import Malformed


ANSWERABLE: Final = (f"{envelope.DIRECT_REPLIES}.", "amq.gen-")
"""What an address begins with that is sent to: the broker's own names for those who wait for replies.

Whoever may publish may write any queue's name into a message; it must not make us write there.
"""
MOST_WAITING: Final = 1_000
"""Replies that wait for a connection at most; the oldest are dropped, their requesters most likely gone."""
AFTER_A_REFUSAL: Final = 5.0
"""Seconds without replies after the broker closed their channel, which it does when the user may not write there."""


class Answers:
    """Sends replies on a channel of their own, so that what the broker thinks of them concerns nobody else.

    `keep` runs for as long as anyone answers.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._channel: Channel | None = None
        self._waiting: deque[Parcel] = deque(maxlen=MOST_WAITING)
        self._wanted = asyncio.Event()
        self._told: set[str] = set()

    def send(self, address: str, reply: Message) -> None:
        """Send a reply, or keep it until there is a channel. Never waits, never raises."""
        if not address.startswith(ANSWERABLE):
            self._tell(f"{address[:60]!r} is no address for replies, which begins with {' or '.join(ANSWERABLE)}")
            return
        parcel = Parcel(reply.id, "", address, envelope.FLAGS, envelope.encode(reply), reply.body)
        if self._channel is not None and self._channel.error is None:
            self._put(self._channel, parcel)
        else:
            self._waiting.append(parcel)
            self._wanted.set()

    async def keep(self) -> None:
        """Open a channel whenever one is wanted; ends by being cancelled."""
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            try:
                link = await self._supervisor.link()
                async with asyncio.timeout(OPEN_WITHIN):
                    await link.writable()
                    channel = await link.channel(confirm=True)
            except (ConnectionError, TimeoutError, AccessRefused):
                await asyncio.sleep(backoff())
                continue
            backoff.reset()
            self._wanted.clear()
            self._channel = channel
            while self._waiting:
                self._put(channel, self._waiting.popleft())
            await channel.closed.wait()
            if isinstance(channel.error, ChannelClosed):
                self._tell(f"{channel.error}; the user of BUS_URL needs the permission to write to amq.default")
                await asyncio.sleep(AFTER_A_REFUSAL)

    def _put(self, channel: Channel, parcel: Parcel) -> None:
        try:
            channel.publish([parcel])
        except Malformed as error:
            self._tell(str(error))

    def _tell(self, why: str) -> None:
        kind = why.partition(" ")[2]
        if kind not in self._told:
            self._told.add(kind)
            logger().warning("a reply was not sent; others like it are not told of", error=why)
