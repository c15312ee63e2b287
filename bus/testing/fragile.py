"""The memory transport as a broker far away: what RabbitMQ does one after the other is not done at once here.

Copies are stored, then the original is acked, and a crash may come between the two; a publish may fail, or be stored
although it raised; copies come late, and twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from ..errors import DeliveryLost
from ..message import Outgoing
from ..outcome import Ack, DeadLetter, Outcome, Retry
from ..transport.memory import MemoryConsumer, MemoryDelivery, MemoryQueue, MemoryTransport, Stored
from .faults import Course


class FragileTransport(MemoryTransport):
    """A memory transport to which a course of faults happens; `told` is told of them."""

    def __init__(self, course: Course, told: Callable[[str], None]) -> None:
        super().__init__()
        self._course = course
        self._told = told
        self._up = asyncio.Event()
        self._up.set()
        self._down_until = 0.0
        self.worker_comes_again = False

    def waiting(self) -> dict[str, int]:
        """Return what is not settled yet; while a worker is to start again, nothing is."""
        return super().waiting() | ({"the worker starts again": 1} if self.worker_comes_again else {})

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages, through an outage, or fail; a failed publish is tried again, as by any careful program.

        So what was stored although it raised is there twice, with the same id.
        """
        while True:
            await asyncio.sleep(0)
            await self._up.wait()
            faults = {fault.kind for fault in self._course.due("publish")}
            types = ", ".join(outgoing.message.type for outgoing in messages)
            if "refused" in faults:
                self._told(f"publish refused: {types}")
            else:
                await super().publish(messages)
                if "unsure" not in faults:
                    break
                self._told(f"stored, but the publish raised: {types}")
            await asyncio.sleep(0.05)
        await asyncio.sleep(0)

    def lose_connection(self) -> None:
        """Take back what is unsettled, as when the connection breaks; the worker goes on."""
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

    def _start(self, until: float) -> None:
        if until < self._down_until:
            return  # another outage is longer
        self._up.set()
        for queue in self.queues.values():
            queue.hand_out()

    @property
    def up(self) -> bool:
        """Whether it is there."""
        return self._up.is_set()

    def _consumer(self, queue: MemoryQueue, limit: int) -> MemoryConsumer:
        return FragileConsumer(self, queue, limit)

    def _put(self, queue: MemoryQueue, stored: Stored) -> None:
        faults = {fault.kind: fault for fault in self._course.due("copy")}
        name = queue.subscription.name
        if (late := faults.get("late")) is not None:
            self._told(f"late by {late.seconds:.3g} s: {stored.message.type} for {name}")
            self._later(timedelta(seconds=late.seconds), lambda: queue.put(stored))
        else:
            queue.put(stored)
        if (twice := faults.get("duplicate")) is not None:
            self._told(f"twice, after {twice.seconds:.3g} s: {stored.message.type} for {name}")
            again = replace(stored, position=self._position())
            self._later(timedelta(seconds=twice.seconds), lambda: queue.put(again))


class FragileConsumer(MemoryConsumer):
    """Takes deliveries over a connection that may break."""

    def __init__(self, transport: FragileTransport, queue: MemoryQueue, limit: int) -> None:
        super().__init__(transport, queue, limit)
        self._fragile = transport

    async def __anext__(self) -> MemoryDelivery:
        delivery = await super().__anext__()
        return FragileDelivery(self._fragile, self._queue, self, delivery.stored, suspect=delivery.suspect)

    def offer(self, stored: Stored) -> bool:
        """Take the copy, while the broker is there."""
        return self._fragile.up and super().offer(stored)

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
        """Store every copy, then ack; what comes between is a crash's or a lost connection's."""
        match outcome:
            case Ack(publish=published) if published:
                self._require()
                await self._fragile.publish(published)
                outcome = replace(outcome, publish=())
            case Retry() | DeadLetter():
                self._require()
                self._fragile.carry_out(self._queue, self.stored, outcome)
                await asyncio.sleep(0)
                outcome = Ack()
        await super().settle(outcome)

    def _require(self) -> None:
        if self.lost:
            raise DeliveryLost(f"the delivery of {self.message.id} was lost with its connection")
