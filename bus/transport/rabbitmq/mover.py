"""Moving messages from one queue into another, in their order: stored and confirmed, then acked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self

from pamqp import commands

from ... import clock
from ...errors import BusUnavailable, Fate
from ...outcome import Failure
from .. import Subscription
from . import copies, envelope, wire
from .alone import ask
from .channel import Channel, ChannelClosed, Parcel, Received
from .delivery import FURTHER_KEYS, Place
from .desk import operator
from .link import Link
from .topology import Names


AT_ONCE: Final = 200
"""Messages that are stored together: so many come twice at most when the move is cut off."""
CONFIRMED_WITHIN: Final = 30.0
OF_STREAMS: Final = wire.short("x-stream-offset")
"""A header that the broker adds to what comes from a stream."""
INVALID: Final = 406
FIRST_WITHIN: Final = 0.3
"""Seconds within which the first entry of a stream comes, if it has any."""
QUIET: Final = 0.02
"""Seconds after which an empty queue is asked whether it is."""
ROOM: Final = 64
"""Bytes of a frame that are not the properties'."""


class Mover:
    """Takes from one queue, over a channel of its own, and stores by an exchange of ours under one key."""

    def __init__(
        self,
        taking: Channel,
        storing: Channel,
        source: str,
        into: tuple[str, str],
        place: Place,
        moved: Callable[[int], None],
    ) -> None:
        self._taking = taking
        self._storing = storing
        self._source = source
        self._into = into
        self._place = place
        self._moved = moved
        self._inbox: list[Received] = []
        self._news = asyncio.Event()
        self._consumers = 0
        taking.on_delivery = self._arrived
        taking.on_end = storing.on_end = self._news.set

    @classmethod
    async def open(
        cls,
        link: Link,
        source: str,
        into: tuple[str, str],
        names: Names,
        subscription: Subscription,
        moved: Callable[[int], None],
    ) -> Self:
        """Return a mover that consumes nothing yet; `moved` is called with each number that is stored and acked."""
        taking, storing = await link.channel(), await link.channel(confirm=True)
        # the next are here by the time that these are stored
        await ask(taking, commands.Basic.Qos(prefetch_count=2 * AT_ONCE))
        return cls(taking, storing, source, into, Place(subscription, names), moved)

    async def drain(self) -> tuple[int, int]:
        """Move what there is; return the messages that are left by then, and the consumers who hold any or wait."""
        tag = await self._consume()
        while True:
            while self._inbox:
                await self._move()
            if not await self._more() and not self._inbox and not (await self._left())[0]:
                break
        await ask(self._taking, commands.Basic.Cancel(consumer_tag=tag))
        while self._inbox:
            await self._move()
        return await self._left()

    async def delete(self, within: float) -> None:
        """Delete the queue, which is empty and which nobody has; move what comes in until it is gone.

        Until that is stored it is in this process alone: whoever kills it then takes it along.
        """
        # one behind the other without a wait, so that nobody gets in between
        self._consumers += 1
        consume = commands.Basic.Consume(queue=self._source, consumer_tag=str(self._consumers))
        delete = commands.Queue.Delete(queue=self._source)
        async with asyncio.timeout(within):
            await asyncio.gather(self._taking.rpc(consume), self._taking.rpc(delete))
        while self._inbox:
            await self._move(ack=False)
        self._taking.leave()
        self._storing.leave()

    async def _consume(self) -> str:
        # a tag of its own each time: 3.10 crashes the connection over a quorum queue whose tag comes again
        self._consumers += 1
        tag = str(self._consumers)
        await ask(self._taking, commands.Basic.Consume(queue=self._source, consumer_tag=tag))
        return tag

    async def _more(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self._news.wait()
        self._news.clear()
        self._check()
        return bool(self._inbox)

    async def _left(self) -> tuple[int, int]:
        self._taking.link.flush()
        found = await ask(self._taking, commands.Queue.Declare(queue=self._source, passive=True))
        return found.message_count or 0, found.consumer_count or 0

    async def _move(self, *, ack: bool = True) -> None:
        some, self._inbox = self._inbox[:AT_ONCE], self._inbox[AT_ONCE:]
        parcels = [copy(each, self._into, self._place, self._storing.link.frame_max) for each in some]
        try:
            async with asyncio.timeout(CONFIRMED_WITHIN):
                await self._storing.link.writable()
                fates = await self._storing.publish(parcels).future
        except TimeoutError:
            fates = [Fate.UNKNOWN]
        self._check()
        if set(fates) != {Fate.STORED}:
            raise BusUnavailable(
                f"the broker did not store what was to be moved out of {self._source}, which is still there: run it "
                "again, and it goes on",
                {},
            )
        self._moved(0)
        if ack:
            for received in some:
                self._taking.settle(wire.delivered(received.method)[0])
            self._taking.link.flush()
        self._moved(len(some))

    def _check(self) -> None:
        for channel in (self._taking, self._storing):
            if channel.error is not None:
                raise channel.error

    def _arrived(self, received: Received) -> None:
        self._inbox.append(received)
        self._news.set()


async def is_stream(link: Link, queue: str) -> bool:
    """Tell whether a queue is a stream with entries; no other kind may be asked for its first one."""
    channel, news = await link.channel(), asyncio.Event()
    first: list[Received] = []

    def arrived(received: Received) -> None:
        first.append(received)
        news.set()

    channel.on_delivery, channel.on_end = arrived, news.set
    argument: Any = {"x-stream-offset": "first"}
    await ask(channel, commands.Basic.Qos(prefetch_count=1))
    try:
        await ask(channel, commands.Basic.Consume(queue=queue, consumer_tag="first", arguments=argument))
    except ChannelClosed as error:
        if error.code == INVALID:
            return False
        raise
    with suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WITHIN):
            await news.wait()
    await channel.aclose()
    return any(OF_STREAMS in each.header for each in first)


def copy(received: Received, into: tuple[str, str], place: Place, most: int) -> Parcel:
    """Return a copy that means what the original does: what it may say of attempts is what was believed before."""
    _, _, exchange, key = wire.delivered(received.method)
    original = exchange == place.events
    arrived = envelope.decode(
        received.header, received.body, key, ours=place.is_ours(exchange), redelivered=False, original=original
    )
    routed = FURTHER_KEYS not in received.header if original else arrived.routed_by is not None
    message, body = arrived.message, received.body
    flags, properties = copies.moved(received.header, arrived, routed=routed)
    if len(properties) + ROOM > most:
        # it came with as much as fits into a frame: what a worker does with so much is done here
        now, (service, _, handler) = clock.now(), place.subscription.name.partition(".")
        failure = Failure(
            service=service,
            handler=handler,
            reason="too-large",
            error_type="MessageTooLarge",
            error=f"its headers have {len(received.header)} bytes, and do not fit into a frame when it is moved",
            traceback="",
            attempts=arrived.attempt,
            first_failed_at=arrived.first_failed_at or now,
            last_failed_at=now,
            worker=operator(),
        )
        flags, properties, body = copies.dead_letter(received.header, body, message, arrived.routing_key, failure)
        into = place.names.dead(service), place.names.queue(place.subscription)
    return Parcel(message.id, *into, flags, properties, body, mandatory=True)
