"""The memory transport as a broker far away: what RabbitMQ does one after the other is not done at once here.

Copies are stored, then the original is acked, and a crash may come between the two; a publish may fail, or be stored
although it raised; copies come late, and twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from ..errors import BusUnavailable, DeliveryLost, Fate
from ..message import Message, Outgoing
from ..outcome import Ack, DeadLetter, Outcome, Release, Retry
from ..transport.memory import HERE, MemoryConsumer, MemoryDelivery, MemoryQueue, MemoryTransport, Stored
from .faults import Course
from .generation import in_a_worker


class FragileTransport(MemoryTransport):
    """A memory transport to which a course of faults happens; `told` is told of them."""

    def __init__(self, course: Course, told: Callable[[str], None], publish_timeout: float) -> None:
        super().__init__()
        self._timeout = publish_timeout
        self._course = course
        self._told = told
        self._up = asyncio.Event()
        self._up.set()
        self._down_until = 0.0
        self._stalled: Counter[str] = Counter()
        self.worker_comes_again = False
        self.waited_for = False
        """Whether the scenario waited by the bus since its last publish."""

    def waiting(self) -> dict[str, int]:
        """Return what is not settled yet; while a worker is to start again, nothing is."""
        return super().waiting() | ({"the worker starts again": 1} if self.worker_comes_again else {})

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages, or raise as any broker's client does where a handler publishes by a Bus.

        What the scenario publishes is tried again, as by any careful program: what was stored although it raised is
        there twice then, with the same id.
        """
        if in_a_worker():
            await self._publish(messages)
        else:
            self.waited_for = False
            await self.store(messages)

    async def store(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages, through an outage, and again for as long as it fails."""
        while True:
            try:
                return await self._publish(messages)
            except BusUnavailable:
                await asyncio.sleep(0.05)

    async def request(self, message: Message, *, timeout: float) -> Message:
        """Store a request, and return the first reply to it; the timeout bounds both, as at any broker."""
        asked, stored = [Outgoing(replace(message, reply_to=HERE), required=True)], False
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()  # what was not sent loses nothing with a connection
                with self.replies.expected(message) as reply:
                    await self.publish(asked)
                    stored = True
                    return await reply
        except TimeoutError:
            if stored:
                raise
            told = f"not sent within {timeout:g} s: the broker is down"
            raise BusUnavailable(told, {message.id: Fate.UNKNOWN}) from None

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages; raises BusUnavailable, and may have stored them all the same."""
        await asyncio.sleep(0)
        ids, types = [each.message.id for each in messages], ", ".join(each.message.type for each in messages)
        try:
            async with asyncio.timeout(self._timeout):
                await self._up.wait()
        except TimeoutError:
            raise BusUnavailable(
                f"not sent within {self._timeout:g} s: the broker is down", dict.fromkeys(ids, Fate.UNKNOWN)
            ) from None
        faults = {fault.kind for fault in self._course.due("publish")}
        if "refused" in faults:
            self._told(f"publish refused: {types}")
            raise BusUnavailable("the publish failed, and nothing was stored", dict.fromkeys(ids, Fate.UNKNOWN))
        await super().publish(messages)
        if "unsure" in faults:
            self._told(f"stored, but the publish raised: {types}")
            raise BusUnavailable("no confirm came; it may be stored", dict.fromkeys(ids, Fate.UNKNOWN))
        await asyncio.sleep(0)

    def lose_connection(self) -> None:
        """Take back what is unsettled, as when the connection breaks; the worker goes on, and no reply comes."""
        self.replies.lost("the connection was lost")
        for queue in self.queues.values():
            for consumer in queue.consumers:
                assert isinstance(consumer, FragileConsumer)
                consumer.lose()

    def stop(self, seconds: float) -> None:
        """Be down for so long: nothing is published and nothing is handed out."""
        until = asyncio.get_running_loop().time() + seconds
        if self._up.is_set() or until > self._down_until:
            self._down_until = until
            asyncio.get_running_loop().call_at(until, self._start, until)
        self._up.clear()
        self.lose_connection()

    def _stall(self, queue: MemoryQueue, seconds: float) -> None:
        name = queue.subscription.name
        self._stalled[name] += 1

        def over() -> None:
            self._stalled[name] -= 1
            queue.hand_out()

        asyncio.get_running_loop().call_later(seconds, over)

    def _start(self, until: float) -> None:
        if until < self._down_until:
            return  # another outage is longer
        self._up.set()
        for queue in self.queues.values():
            queue.hand_out()

    def hands_out(self, queue: MemoryQueue) -> bool:
        """Tell whether it is there, and nothing in the queue is late."""
        return self._up.is_set() and not self._stalled[queue.subscription.name]

    def _consumer(self, queue: MemoryQueue, limit: int) -> MemoryConsumer:
        return FragileConsumer(self, queue, limit)

    def _put(self, queue: MemoryQueue, stored: Stored) -> None:
        faults = {fault.kind: fault for fault in self._course.due("copy")}
        name = queue.subscription.name
        if (late := faults.get("late")) is not None:
            self._told(f"late by {late.seconds:.3g} s: {stored.message.type} for {name}")
        if late is not None and queue.subscription.ordered:
            # a queue keeps its order: what comes after it is late too
            queue.put(stored)
            self._stall(queue, late.seconds)
        elif late is not None:
            self._later(timedelta(seconds=late.seconds), lambda: queue.put(stored))
        else:
            queue.put(stored)
        twice = faults.get("duplicate")
        if twice is not None and queue.subscription.ordered:
            # a publisher that repeats a message has not published the next one yet
            self._told(f"twice: {stored.message.type} for {name}")
            queue.put(replace(stored, position=self._position()))
        elif twice is not None:
            self._told(f"twice, after {twice.seconds:.3g} s: {stored.message.type} for {name}")
            again = replace(stored, position=self._position())
            self._later(timedelta(seconds=twice.seconds), lambda: queue.put(again))


class FragileConsumer(MemoryConsumer):
    """Takes deliveries over a connection that may break."""

    def __init__(self, transport: FragileTransport, queue: MemoryQueue, limit: int) -> None:
        super().__init__(transport, queue, limit)
        self._fragile = transport

    async def __anext__(self) -> MemoryDelivery:
        await asyncio.sleep(0)
        delivery = await super().__anext__()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._give_back(delivery.stored)
            raise
        return FragileDelivery(self._fragile, self._queue, self, delivery.stored, suspect=delivery.suspect)

    def offer(self, stored: Stored) -> bool:
        """Take the copy, while the broker is there."""
        return self._fragile.hands_out(self._queue) and super().offer(stored)

    def lose(self) -> None:
        """Give back what is unsettled, and go on."""
        self._return_all()


class FragileDelivery(MemoryDelivery):
    """A delivery whose outcome is carried out step by step."""

    __slots__ = ("_fragile", "_queue")

    def __init__(
        self,
        transport: FragileTransport,
        queue: MemoryQueue,
        consumer: MemoryConsumer,
        stored: Stored,
        *,
        suspect: bool,
    ) -> None:
        super().__init__(consumer, stored, suspect=suspect)
        self._fragile = transport
        self._queue = queue

    async def settle(self, outcome: Outcome) -> None:
        """Store every copy, then ack; what comes between is a crash's or a lost connection's, before and after too."""
        if isinstance(outcome, Release):
            # what is released comes back, as it would by a crash
            await super().settle(outcome)
            return
        await asyncio.sleep(0)
        match outcome:
            case Ack():
                if outcome.publish:
                    if outcome.complete is None:
                        self._require()
                    await self._stored(outcome.publish)
                if outcome.complete is not None:
                    await outcome.complete()
                    await asyncio.sleep(0)
                outcome = Ack(reply=outcome.reply)
            case Retry() | DeadLetter():
                self._require()
                self._fragile.carry_out(self._queue, self.stored, outcome)
                await asyncio.sleep(0)
                outcome = Ack()
        await super().settle(outcome)
        await asyncio.sleep(0)

    async def _stored(self, events: Sequence[Outgoing]) -> None:
        """Store what was published with it; what cannot be stored is tried again for as long as it is not lost."""
        while True:
            try:
                await self._fragile.publish(events)
            except BusUnavailable:
                self._require()
                await asyncio.sleep(0.05)
            else:
                return

    def _require(self) -> None:
        if self.lost:
            raise DeliveryLost(f"the delivery of {self.message.id} was lost with its connection")
