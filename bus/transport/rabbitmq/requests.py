"""Requests: published on the channel on which their replies come back (RabbitMQ's direct reply-to).

It needs no queue, no right to configure or to read, and leaves nothing behind at the broker; what comes back is bound
to the life of the channel, so that its end is the end of what waits.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from pamqp import commands

from ...errors import BusUnavailable, Fate, PublishRefused, Unroutable
from ...message import Message
from ...replies import Replies
from . import envelope, wire
from .channel import Channel, ChannelClosed, LinkLost, Parcel, Received
from .largest import TooLarge, fits, limit_in
from .patience import patient
from .publisher import OPEN_WITHIN, Publisher, WriteRefused
from .supervisor import Backoff, Supervisor


ADDRESS: Final = wire.short(envelope.DIRECT_REPLIES)
NEVER_COMES: Final = frozenset({403, 404})
"""Why the broker closes a channel over a publish: no permission to write, no exchange."""


class Requests(Publisher):
    """Publishes requests on a channel of its own, and takes what comes back; many tasks may wait at once.

    It differs from its base in that nothing is published twice: a handler may have run. `keep` runs for as long as
    anyone requests.
    """

    def __init__(self, supervisor: Supervisor, exchange: str, timeout: float) -> None:
        super().__init__(supervisor, exchange, timeout)
        self.replies = Replies()
        self._doubted = asyncio.Event()

    async def keep(self) -> None:
        """Open channels, and watch over confirms; ends by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().keep(), name="request channel")
            tasks.create_task(self._doubt(), name="request watch")

    async def _doubt(self) -> None:
        """Ask the link for an answer where a request was not confirmed in time, which is sooner than any heartbeat."""
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            if self._channel is not None:
                await self._ask(self._channel.link)

    async def request(self, message: Message, timeout: float) -> Message:
        """Publish the request and return the first reply. Raises as the seam says."""
        deadline = asyncio.get_running_loop().time() + timeout
        parcel = Parcel(
            id=message.id,
            exchange=self._exchange,
            key=message.type,
            flags=envelope.FLAGS_OF_REQUEST,
            properties=envelope.encode(message, reply_to=ADDRESS),
            body=message.body,
            mandatory=True,
        )
        channel = await self._ready(message.id, timeout, deadline)
        if (limit := channel.link.largest) is not None and not fits([parcel], limit):
            raise TooLarge(len(parcel.body), limit, {parcel.id: Fate.REFUSED})
        with self.replies.expected(message) as reply:
            batch = self._send(channel, [parcel], deadline)
            batch.future.add_done_callback(partial(self._told, parcel, channel, reply))
            try:
                async with asyncio.timeout_at(deadline):
                    return await reply
            except TimeoutError:
                if batch.fates[0] is Fate.STORED:
                    raise
                raise self._unconfirmed(message.id, self._supervisor.trouble) from None

    async def _ready(self, id: str, timeout: float, deadline: float) -> Channel:
        """Return a channel that takes a request now; waits for it until the deadline."""
        channel, why, backoff = self._channel, "", Backoff()
        clock = asyncio.get_running_loop().time
        if channel is not None and channel.error is None and channel.link.open_for_writing:
            return channel
        while True:
            try:
                return await self._writable(deadline)
            except TimeoutError:
                because = self._supervisor.trouble or why or "the broker takes nothing now"
                raise BusUnavailable(f"not sent within {timeout:g} s: {because}", {id: Fate.UNKNOWN}) from None
            except ConnectionError as error:
                why = str(error)
                await asyncio.sleep(min(backoff(), max(deadline - clock(), 0)))

    async def _open(self) -> Channel:
        channel = await super()._open()
        channel.on_delivery = self._arrived
        channel.on_end = partial(self._ended, channel)
        try:
            async with patient(OPEN_WITHIN):
                await channel.rpc(commands.Basic.Consume(queue=envelope.DIRECT_REPLIES, no_ack=True))
        except TimeoutError as error:
            self._give_up(channel.link)
            raise LinkLost(f"no answer within {OPEN_WITHIN:g} s") from error
        return channel

    def _arrived(self, received: Received) -> None:
        # by its key, which is the address, nothing can be told
        self.replies.arrived(envelope.decode(received.header, received.body, "", ours=False).message)

    def _ended(self, channel: Channel) -> None:
        # those without a confirm are told first, each its own fate
        asyncio.get_running_loop().call_soon(self.replies.lost, str(channel.error))

    def _told(
        self, parcel: Parcel, channel: Channel, reply: asyncio.Future[Message], confirmed: asyncio.Future[list[Fate]]
    ) -> None:
        """Fail a request that was not stored; one that was answered needs no confirm."""
        [fate] = confirmed.result()
        if reply.done() or fate is Fate.STORED:
            return
        id, error = parcel.id, channel.error
        fates = {id: fate}
        if fate is Fate.UNROUTABLE:
            reply.set_exception(Unroutable("no queue wants the request, so nobody will answer it", fates))
        elif fate is Fate.REFUSED:
            reply.set_exception(PublishRefused("the broker refused to store the request", fates))
        elif isinstance(error, ChannelClosed) and (limit := limit_in(error.text)) is not None:
            channel.link.largest = limit
            if fits([parcel], limit):
                reply.set_exception(self._unconfirmed(id, str(error)))
            else:
                reply.set_exception(TooLarge(len(parcel.body), limit, {id: Fate.REFUSED}))
        elif isinstance(error, ChannelClosed) and error.code in NEVER_COMES:
            refused = WriteRefused if error.code == 403 else PublishRefused
            reply.set_exception(refused(f"the broker refused to store the request: {error}", {id: Fate.REFUSED}))
        else:
            reply.set_exception(self._unconfirmed(id, str(error or self._supervisor.trouble)))

    def _unconfirmed(self, id: str, why: str) -> BusUnavailable:
        self._doubted.set()
        told = "the request was sent and not confirmed" + (f": {why}" if why else "")
        return BusUnavailable(f"{told}; it may be handled yet", {id: Fate.UNKNOWN})
