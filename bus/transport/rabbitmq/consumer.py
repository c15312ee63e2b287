"""Consuming: one channel for each queue of a subscription, there again soon after anything was lost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self

from pamqp import commands

from ...errors import AccessRefused, ConfigurationError
from ...logs import logger
from . import envelope, wire
from .channel import Channel, ChannelClosed, LinkLost, Received
from .delivery import RabbitMQDelivery, Settling
from .doubts import Doubts
from .hearing import Hearing
from .inbox import Inbox
from .patience import patient
from .supervisor import Backoff, Supervisor
from .suspects import SUSPECT


PROBE_AFTER: Final = 5.0
"""Seconds without news after which a channel is asked whether it still lives."""
ANSWER_WITHIN: Final = 5.0
"""Seconds that any living broker needs to answer such a question, or to open a channel."""
CONSUME_WITHIN: Final = 10.0
"""Seconds that a broker needs to consume from a queue, which may have to elect its leader first."""
IN_USE: Final = "in exclusive use"
"""What a queue says that somebody else consumes alone: no right is missing, and it may be free soon."""
GONE_WITHIN: Final = 0.5
"""Seconds within which a queue that is deleted is gone for everybody; its consumers are cancelled before that."""

CLOSE_FOR_LATE: Final = ("3.", "4.0.", "4.1.", "4.2.")
"""Versions that close the channel of a consumer with something unacked for too long; later ones cancel it."""


class Feed:
    """One queue, consumed on a channel of its own into the inbox.

    It starts at prefetch 1 and opens up when a first delivery is no suspect: a message that kills its worker would
    take its whole prefetch with it. An ordered queue keeps its prefetch, and its channel is closed rather than its
    consumer cancelled.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        queue: str,
        inbox: Inbox,
        limit: int,
        declare: Callable[[], Awaitable[ConfigurationError | None]] | None,
        doubts: Doubts,
        *,
        ordered: bool = False,
    ) -> None:
        self._supervisor = supervisor
        self._queue = queue
        self._inbox = inbox
        self._limit = limit
        self._declare = declare
        self._doubts = doubts
        doubts.of(queue)
        self._ordered = ordered
        self._channel: Channel | None = None
        self._probing = False
        self._cancelled = self._missing = self._leaving = False
        self._abandoned: list[Channel] = []
        self._consumers = 0
        self._lost_at: float | None = None
        self._tags: list[str] = []
        self._granted = 0
        self._registered = self._renewing = self._consumed = False
        self._wake = asyncio.Event()
        self._consuming = asyncio.Lock()

    @property
    def consuming(self) -> bool:
        """Whether the broker has confirmed what it was asked for, and can still send."""
        channel = self._channel
        lives = channel is not None and channel.error is None and self._registered and not self._cancelled
        return lives or self._renewing

    async def keep(self) -> None:
        """Consume, and consume again after whatever was lost; ends by being cancelled, and gives back the unsettled."""
        backoff = Backoff()
        try:
            while True:
                try:
                    await self._session(backoff)
                    if self._renewing:
                        continue
                except (AccessRefused, ConfigurationError) as error:
                    self._inbox.fail(error)
                    return
                except ChannelClosed as error:
                    if error.code == 403 and not self._consumed and IN_USE not in error.text:
                        self._inbox.fail(AccessRefused(f"queue {self._queue!r}: {error.text}"))
                        return
                    self._missing = error.code == 404
                    self._tell(str(error))
                except ConnectionError:
                    pass  # the supervisor says so once
                self._renewing = False
                await asyncio.sleep(backoff())
        finally:
            self._renewing = False
            for channel in self._abandoned:
                await channel.aclose()

    async def _session(self, backoff: Backoff) -> None:
        """Consume on one channel, until it ends, the broker cancels the consumer, or it heard nothing for long."""
        if self._missing or self._leaving:
            await self._there_again()
        channel = await self._opened()
        try:
            channel.settled_last = deque(maxlen=0)
            channel.on_delivery = self._arrived
            channel.on_cancelled = partial(self._on_cancelled, channel)
            channel.on_end = self._wake.set
            self._probing, self._cancelled = not self._ordered, False
            self._tags, self._granted = [], 0
            self._registered = False
            self._channel = channel
            await self._apply()
            self._renewing = False
            if channel.error is None:
                backoff.reset()
                self._tell_again()
            hearing = Hearing(channel)
            while channel.error is None and not self._cancelled and not self._left:
                if not await self._news():
                    await self._probe(channel)
                    self._doubts.worked(self._queue, PROBE_AFTER if hearing.could(self._granted) else 0)
                    if self._granted and hearing.deaf():
                        self._renewing = True
                        return
                elif channel.error is None and not self._cancelled:
                    await self._apply()
            if channel.error is not None:
                raise channel.error
            self._missing = True
            if not self._leaving and await self._taken_back(channel):
                return
            if not self._ordered:  # another channel beside this one would get what comes after what runs here
                self._abandon(channel)
        finally:
            self._channel = None
            self._inbox.take_back(channel)
            if channel.error is not None or channel.doubtful:
                self._doubts.add(channel.settled_last)
            self._doubts.lost()
            if channel not in self._abandoned:
                await channel.aclose()

    async def _there_again(self) -> None:
        """Have the queue, which was deleted, or is being moved."""
        if self._leaving:
            self._tell("its queue is moved to other arguments by `topology migrate`")
        # whatever is heard from here on of another move counts for what is consumed next
        self._missing, self._leaving = True, False
        await self._ensure()
        self._missing = False

    async def _taken_back(self, channel: Channel) -> bool:
        """Say why the broker cancelled the consumer, and tell whether all that came by the channel went back."""
        if not await self._late(channel):
            self._tell("the broker cancelled the consumer: its queue was deleted, or has moved")
            return False
        self._tell("the broker took back what was unacked for too long")
        await channel.aclose()
        return True

    async def _late(self, channel: Channel) -> bool:
        """Tell whether a consumer was cancelled for what was unacked too long: its queue is there still."""
        if channel.link.version.startswith(CLOSE_FOR_LATE):
            return False
        try:
            async with patient(ANSWER_WITHIN):
                # of an ordered queue somebody else may be active meanwhile, who must not be overtaken
                for wait in (0.0,) if self._ordered else (0.0, GONE_WITHIN):
                    await asyncio.sleep(wait)
                    scratch = await channel.link.channel()
                    try:
                        await scratch.rpc(commands.Queue.Declare(queue=self._queue, passive=True))
                    finally:
                        scratch.leave()
        except ChannelClosed as error:
            return error.code != 404
        except TimeoutError:
            pass
        return True

    def _abandon(self, channel: Channel) -> None:
        """Leave a channel whose queue was deleted or moved, but open: what runs can still be settled on it.

        The queue is consumed on another channel then: 3.10 crashes the connection over acks for a queue of the same
        name that was declared again. Where the queue still sends, not all of it was cancelled, and it all goes back.
        """
        channel.on_delivery = lambda _: channel.leave()
        channel.on_cancelled = channel.on_end = lambda: None
        channel.release(wire.delivered(received.method)[0] for received in self._inbox.take_back(channel))
        for old in self._abandoned:
            if old.settled:
                old.leave()
        self._abandoned = [*(old for old in self._abandoned if old.error is None), channel]

    async def _opened(self) -> Channel:
        link = await self._supervisor.link()
        try:
            async with patient(ANSWER_WITHIN):
                return await link.channel()
        except TimeoutError:
            link.give_up(f"no answer within {ANSWER_WITHIN:g} s")
            raise LinkLost("the link does not answer") from None

    def _tell(self, why: str) -> None:
        """Say once that the queue is not consumed from, where its link is not to blame."""
        if self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            logger().warning("not consuming", queue=self._queue, error=why)

    def _tell_again(self) -> None:
        if self._lost_at is not None:
            after = round(asyncio.get_running_loop().time() - self._lost_at, 1)
            logger().info("consuming again", queue=self._queue, after=after)
            self._lost_at = None

    async def _news(self) -> bool:
        """Wait for something to do; return whether there is anything."""
        try:
            async with asyncio.timeout(PROBE_AFTER):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _probe(self, channel: Channel) -> None:
        """Ask for an answer: a channel that died at the broker without a word would be waited for for ever."""
        try:
            # beside a Consume it would change how much that may take
            async with self._consuming, patient(ANSWER_WITHIN):
                await channel.rpc(commands.Basic.Qos(prefetch_count=self._limit))
        except TimeoutError:
            await channel.aclose()

    async def limit(self, unsettled: int) -> None:
        """Consume at most so many unsettled from now on; 0 stops, and gives back what nobody took.

        An ordered queue's channel is closed, and all that came by it goes back in its order: after a cancelled
        consumer the next one would be handed what comes later, and what is given back singly loses its place.
        """
        self._limit = unsettled
        self._probing = False
        try:
            if self._ordered and self._granted and self._channel is not None:
                await self._channel.aclose()
            else:
                await self._apply()
                if self._leaving:
                    self._wake.set()
        except ConnectionError:
            pass  # whatever is consumed next is consumed with the new limit
        except asyncio.CancelledError:
            self._wake.set()  # what was not asked for yet is asked for by `keep`
            raise

    def leave(self) -> None:
        """Have the queue declared again, and consume it on another channel, as soon as the limit is 0."""
        self._leaving = True
        self._wake.set()

    @property
    def _left(self) -> bool:
        return self._leaving and not self._limit and not self._granted

    async def _apply(self) -> None:
        """Bring the consumers at the broker to what is wanted: add what is missing; where it is too much, begin anew.

        The broker limits each consumer for itself, and forgets what a cancelled one still holds. So opening up adds a
        second consumer beside the first, and their limits sum to what is wanted.
        """
        async with self._consuming:
            channel = self._channel
            if channel is None or channel.error is not None:
                return
            try:
                async with patient(CONSUME_WITHIN):
                    await self._grant(channel, min(self._limit, 1) if self._probing else self._limit)
                    self._registered = True
            except TimeoutError:
                self._tell(f"no answer within {CONSUME_WITHIN:g} s")
                channel.leave()

    async def _grant(self, channel: Channel, wanted: int) -> None:
        if wanted < self._granted:
            # a stop cuts this off, and then goes on where it was: what was not confirmed is asked for again
            while self._tags:
                await channel.rpc(commands.Basic.Cancel(consumer_tag=self._tags[-1]))
                self._tags.pop()
            self._granted = 0
            if not wanted:
                channel.release(wire.delivered(received.method)[0] for received in self._inbox.take_back(channel))
        if wanted > (channel.settled_last.maxlen or 0):
            channel.settled_last = deque(channel.settled_last, maxlen=wanted)
        if wanted > self._granted:
            await channel.rpc(commands.Basic.Qos(prefetch_count=wanted - self._granted))
            # noted as it is sent: whoever is cut off before has not granted it, and whoever is after that has
            self._granted = wanted
            # a tag of its own each time: 3.10 crashes the connection over a quorum queue whose tag comes again
            self._consumers += 1
            self._tags.append(str(self._consumers))
            await channel.rpc(commands.Basic.Consume(queue=self._queue, consumer_tag=self._tags[-1]))
            self._consumed = True

    async def _ensure(self) -> None:
        """Have the queue declared again; a foreign one is waited for."""
        if self._declare is not None:
            if (fault := await self._declare()) is not None:
                raise fault
            return
        backoff = Backoff(first=0.2)
        while True:
            scratch = await self._opened()
            try:
                async with patient(CONSUME_WITHIN):
                    await scratch.rpc(commands.Queue.Declare(queue=self._queue, passive=True))
                return
            except ChannelClosed as error:
                if error.code != 404:
                    raise
            except TimeoutError:
                self._tell(f"no answer within {CONSUME_WITHIN:g} s")
            finally:
                scratch.leave()
            await asyncio.sleep(backoff())

    def _arrived(self, received: Received) -> None:
        self._inbox.put(received)
        # a limit of one has nothing to open up to, and the broker would hand out a second beside the first
        if self._probing and self._limit > 1 and envelope.deliveries_before(received.method, received.header) < SUSPECT:
            self._probing = False
            self._wake.set()

    def _on_cancelled(self, channel: Channel) -> None:
        self._cancelled = channel.doubtful = True
        self._wake.set()


class RabbitMQConsumer:
    """Takes the deliveries of a subscription: of its own queue, and of the foreign queues that are its sources."""

    def __init__(self, inbox: Inbox, feeds: list[Feed], settling: Settling, doubts: Doubts) -> None:
        self._inbox = inbox
        self._feeds = feeds
        self._settling = settling
        self._doubts = doubts
        inbox.done = self._done

    @property
    def consuming(self) -> bool:
        """Whether every queue of it is consumed, as the broker knows it."""
        return all(feed.consuming for feed in self._feeds)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RabbitMQDelivery:
        inbox, doubts = self._inbox, self._doubts
        while True:
            received = await inbox.get()
            delivery = RabbitMQDelivery(received, self._settling)
            if not doubts.none and doubts.settled(delivery.handed, redelivered=delivery.redelivered > 0):
                delivery.ack()
                continue
            return delivery

    def _done(self, received: Received) -> bool:
        """Ack what comes again and is done already; note what is not, as it may run, or wait to be taken."""
        delivery, doubts = RabbitMQDelivery(received, self._settling), self._doubts
        if delivery.message.id_made_up:
            return False
        if done := doubts.settled(delivery.handed, redelivered=True):
            delivery.ack()
        else:
            doubts.came(delivery.handed, delivery.handing)
        return done

    async def limit(self, unsettled: int) -> None:
        """Hold at most so many unsettled deliveries from now on; 0 stops, and gives back what nobody took yet."""
        for feed in self._feeds:
            await feed.limit(unsettled)
