"""The memory transport: deterministic, on one event loop, gone with the process. For tests, and for a first look.

It keeps body bytes and frozen messages, runs the production delivery code, and uses the loop's clock for every delay,
so that a test can let time jump.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self, assert_never

from ..errors import DeliveryLost, Fate, Unroutable
from ..message import Message, Outgoing
from ..outcome import Ack, DeadLetter, Outcome, Release, Retry
from ..replies import Replies
from ..topic import matches_any
from . import Subscription
from .memory_letters import MemoryDeadLetters
from .memory_topology import MemoryTopology


SUSPECT: Final = 2
"""A message that came back so often without an outcome may be what kills workers."""
HERE: Final = "memory"
"""The address of whoever waits for a reply in this process."""
BEHIND: Final = 10
"""The same, for an ordered queue's messages behind the first."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One copy of a message in a queue, and what this handler's earlier deliveries left with it."""

    message: Message
    position: int
    attempt: int = 1
    first_failed_at: datetime | None = None
    redelivered: int = 0
    routed_by: str | None = None
    waits_since: datetime | None = None


def _seen(stored: Stored) -> Stored:
    return replace(stored, redelivered=stored.redelivered + 1)


class MemoryQueue:
    """One subscription's queue: what is ready, who waits, and who consumes."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.bindings: set[str] = set()
        self.ready: deque[Stored] = deque()
        self.consumers: list[MemoryConsumer] = []

    def put(self, stored: Stored) -> None:
        """Append a copy and hand it on if somebody waits."""
        self.ready.append(stored)
        self.hand_out()

    def put_back(self, returned: Iterable[Stored]) -> None:
        """Return copies that nobody settled to where they stood."""
        self.ready = deque(sorted((*returned, *self.ready), key=lambda stored: stored.position))
        self.hand_out()

    def hand_out(self) -> None:
        """Give what is ready to consumers that wait, in turns; what is ordered goes to one of them alone."""
        while self.ready and any(consumer.offer(self.ready[0]) for consumer in self._in_turn()):
            self.ready.popleft()

    def _in_turn(self) -> Iterator[MemoryConsumer]:
        if self.subscription.ordered:
            # who is paused has given up its turn
            yield from [consumer for consumer in self.consumers if not consumer.paused][:1]
            return
        for _ in range(len(self.consumers)):
            self.consumers.append(self.consumers.pop(0))
            yield self.consumers[-1]


class MemoryDelivery:
    """A delivery of the memory transport."""

    __slots__ = ("_consumer", "stored", "suspect")

    def __init__(self, consumer: MemoryConsumer, stored: Stored, *, suspect: bool) -> None:
        self._consumer = consumer
        self.stored = stored
        self.suspect = suspect

    @property
    def message(self) -> Message:
        """The message."""
        return self.stored.message

    @property
    def attempt(self) -> int:
        """Failed runs so far, plus one."""
        return self.stored.attempt

    @property
    def redelivered(self) -> int:
        """How often it came before without an outcome."""
        return self.stored.redelivered

    @property
    def first_failed_at(self) -> datetime | None:
        """When it first failed in this handler."""
        return self.stored.first_failed_at

    @property
    def waits_since(self) -> datetime | None:
        """Since when it waits for a worker of another version."""
        return self.stored.waits_since

    @property
    def routed_by(self) -> str | None:
        """The type by which it was routed here; None if it was sent to this queue alone."""
        return self.stored.routed_by

    @property
    def lost(self) -> bool:
        """Whether it was given back already."""
        return not self._consumer.holds(self.stored)

    async def begin(self) -> int:
        """Note that a run begins; return how many never ended."""
        return self._consumer.begin(self.stored)

    async def end(self) -> None:
        """Note that a run is over."""
        self._consumer.end(self.stored)

    async def settle(self, outcome: Outcome) -> None:
        """Carry the outcome out, all of it or nothing; what completes it comes between, as at any broker."""
        if isinstance(outcome, Ack) and outcome.complete is not None:
            self._consumer.store(self.stored, outcome.publish)
            await outcome.complete()
            outcome = Ack(reply=outcome.reply)
        self._consumer.settle(self.stored, outcome)


class MemoryConsumer:
    """Takes deliveries of one queue. Once it is cut off, as by a crash, its deliveries cannot be settled any more."""

    def __init__(self, transport: MemoryTransport, queue: MemoryQueue, limit: int) -> None:
        self._transport = transport
        self._queue = queue
        self._limit = limit
        self._waiting: deque[asyncio.Future[Stored]] = deque()
        self._unsettled: dict[int, Stored] = {}
        self._left_over: set[int] = set()
        self._cut = False
        self._first = True

    @property
    def consuming(self) -> bool:
        """Whether it was not cut off."""
        return not self._cut

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> MemoryDelivery:
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._queue.hand_out()
        try:
            stored = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._give_back(future.result())
            raise
        judged, self._first = self._first or not self._queue.subscription.ordered, False
        return MemoryDelivery(self, stored, suspect=stored.redelivered >= (SUSPECT if judged else BEHIND))

    async def limit(self, unsettled: int) -> None:
        """Hold at most so many unsettled deliveries from now on; on what is ordered all of them go back first."""
        if unsettled < self._limit and not self._queue.subscription.ordered:
            self._left_over = set(self._unsettled)
        self._limit = unsettled
        if self._queue.subscription.ordered and not self._cut:
            # it is another's turn now
            self._queue.consumers.remove(self)
            self._queue.consumers.append(self)
            self._return_all()
        self._queue.hand_out()
        self._transport.on_settled()

    def holds(self, stored: Stored) -> bool:
        """Tell whether it has the copy, and may settle it."""
        # the same copy may have come again: that is another delivery
        return self._unsettled.get(stored.position) is stored

    def begin(self, stored: Stored) -> int:
        """Note that a run of the copy begins; return how many never ended."""
        self._require(stored)
        return self._transport.begin(stored)

    def end(self, stored: Stored) -> None:
        """Note that a run of the copy is over."""
        self._transport.end(stored)

    @property
    def paused(self) -> bool:
        """Whether it takes nothing, so that its backlog does not count as work to do."""
        return self._limit == 0 or self._cut

    def offer(self, stored: Stored) -> bool:
        """Take the copy if a task waits for one and the limit allows it."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if not self._waiting or len(self._unsettled) - len(self._left_over) >= self._limit:
            return False
        self._unsettled[stored.position] = stored
        self._waiting.popleft().set_result(stored)
        return True

    def store(self, stored: Stored, published: Sequence[Outgoing]) -> None:
        """Store what was published with one delivery, which stays unsettled, or is lost already."""
        self._transport.carry_out(self._queue, stored, Ack(tuple(published)))

    def _require(self, stored: Stored) -> None:
        if not self.holds(stored):
            raise DeliveryLost(f"the delivery of {stored.message.id} belongs to a worker that is gone")

    def settle(self, stored: Stored, outcome: Outcome) -> None:
        """Carry the outcome of one delivery out."""
        if isinstance(outcome, Release) and not self.holds(stored):
            return
        self._require(stored)
        self._transport.carry_out(self._queue, stored, outcome)
        del self._unsettled[stored.position]
        self._left_over.discard(stored.position)
        if isinstance(outcome, Release):
            self._queue.put_back([_seen(stored)])
        self._queue.hand_out()
        self._transport.on_settled()

    def leave(self) -> None:
        """Consume no more, and give back what is unsettled."""
        self._cut = True
        self._queue.consumers.remove(self)
        self._return_all()

    def _return_all(self) -> None:
        self._first = True
        returned, self._unsettled, self._left_over = list(self._unsettled.values()), {}, set()
        self._queue.put_back(map(_seen, returned))

    def _give_back(self, stored: Stored) -> None:
        # nobody saw it, so it does not count as delivered; whoever left has given it back already
        if self._unsettled.pop(stored.position, None) is not None:
            self._left_over.discard(stored.position)
            self._queue.put_back([stored])

    @property
    def unsettled(self) -> int:
        """Deliveries that are taken and not settled."""
        return len(self._unsettled)


class MemoryTransport:
    """Keeps every queue in this process. What a crash of the process would lose is lost."""

    def __init__(self) -> None:
        self.on_sent: Callable[[Outgoing], None] = lambda _: None
        self.on_settled: Callable[[], None] = lambda: None
        self.queues: dict[str, MemoryQueue] = {}
        self.replies = Replies()
        self._dead_letters = MemoryDeadLetters(self.publish)
        self._positions = 0
        self._begun: Counter[int] = Counter()
        self._sent_to: Counter[str] = Counter()
        self._delayed: dict[int, asyncio.TimerHandle] = {}

    @property
    def dead_letters(self) -> MemoryDeadLetters:
        """The dead letters of every service."""
        return self._dead_letters

    @property
    def topology(self) -> MemoryTopology:
        """What is declared, as the code has it."""
        return MemoryTopology()

    def waiting(self) -> dict[str, int]:
        """Return what is not settled yet, in words and numbers; a paused handler's backlog does not count."""
        found = {"delayed or waiting for a retry": len(self._delayed)}
        for name, queue in self.queues.items():
            running = sum(consumer.unsettled for consumer in queue.consumers)
            ready = len(queue.ready) if any(not consumer.paused for consumer in queue.consumers) else 0
            found |= {f"in {name}": running, f"ready for {name}": ready}
        return {what: count for what, count in found.items() if count}

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Make sure that the queues are there; a pattern that an earlier version had stays bound, as at any broker."""
        for subscription in subscriptions:
            self._queue(subscription)

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages; raises Unroutable where a required one matches no queue, and stores the others."""
        self._send_all(messages)

    async def request(self, message: Message, *, timeout: float) -> Message:
        """Store a request, and return the first reply to it."""
        with self.replies.expected(message) as reply:
            await self.publish([Outgoing(replace(message, reply_to=HERE), required=True)])
            async with asyncio.timeout(timeout):
                return await reply

    @asynccontextmanager
    async def consume(self, subscription: Subscription, *, limit: int) -> AsyncIterator[MemoryConsumer]:
        """Take deliveries of a subscription, in turns with its other consumers."""
        queue = self._queue(subscription)
        consumer = self._consumer(queue, limit)
        queue.consumers.append(consumer)
        try:
            yield consumer
        finally:
            if consumer in queue.consumers:
                consumer.leave()

    async def aclose(self) -> None:
        """Forget what is delayed, and who waits for a reply."""
        self.replies.lost("the bus was closed")
        for timer in self._delayed.values():
            timer.cancel()
        self._delayed.clear()

    def crash(self) -> None:
        """Cut every consumer off, as if its process had died: what was unsettled comes again."""
        for queue in self.queues.values():
            for consumer in list(queue.consumers):
                consumer.leave()

    def begin(self, stored: Stored) -> int:
        """Note that a run begins; return how many of the same copy began and never ended."""
        self._begun[stored.position] += 1
        return self._begun[stored.position] - 1

    def end(self, stored: Stored) -> None:
        """Note that a run is over."""
        self._begun.subtract([stored.position])
        self._begun += Counter()  # what ended is forgotten

    def carry_out(self, queue: MemoryQueue, stored: Stored, outcome: Outcome) -> None:
        """Store what an outcome asks for."""
        match outcome:
            case Ack(publish=published):
                self._send_all(published)
                self._reply(stored.message, outcome.reply)
            case Retry(delay=delay):
                again = replace(
                    stored,
                    attempt=outcome.attempt,
                    first_failed_at=outcome.failure.first_failed_at,
                    waits_since=outcome.waits_since,
                    redelivered=0,
                )
                self._later(delay, lambda: self._put(queue, replace(again, position=self._position())))
            case DeadLetter():
                self._dead_letters.add(stored.message, outcome)
                self._reply(stored.message, outcome.reply)
            case Release():
                pass
            case _:
                assert_never(outcome)

    def _reply(self, request: Message, reply: Message | None) -> None:
        if reply is not None and request.reply_to == HERE:
            self.replies.arrived(reply)

    def _queue(self, subscription: Subscription) -> MemoryQueue:
        queue = self.queues.setdefault(subscription.name, MemoryQueue(subscription))
        queue.subscription = subscription
        queue.bindings.update(subscription.patterns)
        return queue

    def _routes(self, outgoing: Outgoing) -> list[MemoryQueue]:
        if (address := outgoing.address) is not None:
            return [q for q in self.queues.values() if address in (q.subscription.name, *q.subscription.sources)]
        kind = outgoing.message.type
        return [queue for queue in self.queues.values() if matches_any(queue.bindings, kind)]

    def _send_all(self, messages: Sequence[Outgoing]) -> None:
        """Send each by itself, as a broker does, which cannot take back what it has stored when another is refused.

        The way of a delay to a queue is made before anything is sent: where there is no such queue, nothing is.
        """
        must = [o for o in messages if o.required or o.address is not None]
        lost = [outgoing for outgoing in must if not self._routes(outgoing)]
        no_way = any(outgoing.delay and outgoing.address is not None for outgoing in lost)
        sent = [] if no_way else [outgoing for outgoing in messages if outgoing not in lost]
        for outgoing in sent:
            self._send(outgoing)
        if lost:
            fates = dict.fromkeys((o.message.id for o in messages), Fate.REFUSED)
            fates |= {o.message.id: Fate.STORED for o in sent} | {o.message.id: Fate.UNROUTABLE for o in lost}
            raise Unroutable(f"no queue wants {lost[0].address or lost[0].message.type!r}", fates)

    def _send(self, outgoing: Outgoing) -> None:
        self.on_sent(outgoing)
        self._later(outgoing.delay, lambda: self._route(outgoing))

    def _route(self, outgoing: Outgoing) -> None:
        by = outgoing.message.type if outgoing.address is None else None
        queues = self._routes(outgoing)
        if (address := outgoing.address) is not None and queues:
            # of several handlers that read one foreign queue, each message reaches one, in turns
            queues = [queues[self._sent_to[address] % len(queues)]]
            self._sent_to[address] += 1
        for queue in queues:
            self._put(queue, Stored(outgoing.message, self._position(), routed_by=by))

    def _consumer(self, queue: MemoryQueue, limit: int) -> MemoryConsumer:
        return MemoryConsumer(self, queue, limit)

    def _put(self, queue: MemoryQueue, stored: Stored) -> None:
        queue.put(stored)

    def _later(self, delay: timedelta, action: Callable[[], None]) -> None:
        if delay <= timedelta():
            action()
            return

        def due() -> None:
            del self._delayed[number]
            action()

        number = self._position()
        self._delayed[number] = asyncio.get_running_loop().call_later(delay.total_seconds(), due)

    def _position(self) -> int:
        self._positions += 1
        return self._positions
