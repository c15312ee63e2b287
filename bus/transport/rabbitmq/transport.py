"""RabbitMQTransport: the seam's verbs, carried out by a publisher, feeds, and aio-pika for the topology."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from ...errors import (
    AccessRefused,
    BusUnavailable,
    ConfigurationError,
    Fate,
    MessageTooLarge,
    PublishError,
    PublishRefused,
    TidegateError,
    Unroutable,
)
from ...logs import logger
from ...message import ROUTED, Message, Outgoing
from ...replies import Replies
from ...settings import Settings
from .. import Subscription
from . import delay, envelope, topology
from .address import Address, addresses, in_any_order
from .admin import RabbitMQTopology
from .answers import Answers
from .cascade import Cascade, Ways
from .channel import Parcel
from .consumer import Feed, RabbitMQConsumer
from .dead_letters import RabbitMQDeadLetters
from .delivery import Settling
from .doubts import Doubts
from .entrance import Entrance
from .inbox import Inbox
from .moves import Moves
from .publisher import Publisher
from .requests import Requests
from .supervisor import Backoff, Supervisor
from .suspects import Suspects


READ_TRIES: Final = 3
"""How often the record is tried to be read before anything is declared without it."""


class RabbitMQTransport:
    """A way to RabbitMQ, made by `open`. Publishing and consuming have a link each: a blocked one stops no ack."""

    def __init__(self, settings: Settings, hosts: Sequence[Address]) -> None:
        log = logger()
        self._addresses = deque(hosts)
        self._names = topology.Names(settings.namespace)
        self._events = self._names.events
        self._publishing = Supervisor(hosts, "publish", log)
        self._consuming = Supervisor(hosts, "consume", log, self._publishing)
        self._publisher = Publisher(
            self._publishing, self._names.events, settings.publish_timeout, self._consuming.leave
        )
        self._requests = Requests(self._publishing, self._names.events, settings.publish_timeout)
        self._answers = Answers(Supervisor(hosts, "answer", log, self._publishing))
        self._cascade = Cascade(self._addresses, self._names, self._publishing, settings.publish_timeout)
        self._dead_letters = RabbitMQDeadLetters(hosts, self._names, settings.publish_timeout)
        self._moves = Moves(hosts, self._names, settings.publish_timeout, self._consuming)
        self._topology = RabbitMQTopology(hosts, self._names, settings.publish_timeout, self._moves)
        self._timeout = settings.publish_timeout
        self._faults: dict[str, TidegateError] = {}
        self._suspects: dict[str, Suspects] = {}
        self._entrances: dict[str, tuple[Entrance, Publisher]] = {}
        self._inboxes: set[Inbox] = set()
        self._declaring = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._started: dict[str, asyncio.Task[None]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[RabbitMQTransport]:
        """Open the transport of `settings.url`; connects in the background. Raises ConfigurationError for a bad URL."""
        transport = cls(settings, in_any_order(addresses(settings)))
        failed: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            transport._tasks = tasks
            publishing = tasks.create_task(transport._publishing.keep(), name="publish link")
            opening = tasks.create_task(transport._publisher.keep(), name="publisher")
            try:
                yield transport
            except Exception as error:
                failed = error
            finally:
                await transport.aclose()
                await transport._dead_letters.aclose()
                opening.cancel()
                publishing.cancel()
                for task in transport._started.values():
                    task.cancel()
        if failed is not None:
            raise failed

    @property
    def dead_letters(self) -> RabbitMQDeadLetters:
        """The dead letters of services, in their streams."""
        return self._dead_letters

    @property
    def topology(self) -> RabbitMQTopology:
        """What is declared at the broker."""
        return self._topology

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Declare what the subscriptions need, as soon as a broker answers."""
        await self._declare(subscriptions)

    async def _declare(self, subscriptions: Sequence[Subscription], without: Collection[object] = ()) -> None:
        # our own link waits, and says so once; only then is it aio-pika's turn
        await self._publishing.link()
        for _ in range(READ_TRIES):
            if await self._moves.read():
                break

        def changes() -> tuple[Collection[object], topology.Moved]:
            moving = [self._names.queue(each) for each in subscriptions if self._moves.moving(each)]
            moved = {self._names.queue(each): to for each in subscriptions if (to := self._moves.arguments(each))}
            return [*without, *moving], moved

        found = await topology.declare_when_up(
            self._addresses, self._names, subscriptions, Backoff(), changes, self._declaring
        )
        for each in subscriptions:
            self._faults.pop(each.name, None)
        self._faults |= found

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages, in order; waits for the broker up to the publish timeout."""
        parcels = [self._parcel(outgoing) for outgoing in messages]
        if any(outgoing.delay for outgoing in messages):
            ways = dict.fromkeys(o.address for o in messages if o.delay and o.address is not None)
            await self._publish_delayed(parcels, ways)
        else:
            await self._publisher.publish(parcels)

    async def _publish_delayed(self, parcels: Sequence[Parcel], ways: Ways) -> None:
        """Publish what enters the delay cascade, once more where that was deleted meanwhile."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        await self._delays_ready(parcels, ways, deadline)
        try:
            await self._publisher.publish(parcels, deadline)
        except MessageTooLarge:
            raise
        except (Unroutable, PublishRefused) as error:
            self._cascade.forget()
            left = [parcel for parcel in parcels if error.fates[parcel.id] is not Fate.STORED]
            try:
                if not await self._delays_ready(left, ways, deadline):
                    raise
                await self._publisher.publish(left, deadline)
            except PublishError as again:
                again.fates = {**error.fates, **again.fates}
                raise

    async def _delays_ready(self, parcels: Sequence[Parcel], ways: Ways, deadline: float) -> bool:
        try:
            return await self._cascade.ready(ways, deadline)
        except PublishError as error:
            fate = Fate.UNKNOWN if isinstance(error, BusUnavailable) else Fate.REFUSED
            fates = {parcel.id: fate for parcel in parcels}
            if isinstance(error, Unroutable):
                fates |= {parcel.id: Fate.UNROUTABLE for parcel in parcels if parcel.key in ways}
            raise type(error)(str(error), fates) from error

    @property
    def replies(self) -> Replies:
        """The requests that wait for their replies."""
        return self._requests.replies

    async def request(self, message: Message, *, timeout: float) -> Message:
        """Publish a request, and return the first reply to it."""
        self._start("requests", self._requests.keep)
        return await self._requests.request(message, timeout)

    @asynccontextmanager
    async def consume(self, subscription: Subscription, *, limit: int) -> AsyncIterator[RabbitMQConsumer]:
        """Take deliveries of a subscription, through lost connections; leaving gives back the unsettled."""
        # a program that only publishes needs no second connection
        self._start("consume link", self._consuming.keep)
        self._start("follow the record", self._moves.keep)
        if (fault := self._faults.get(subscription.name) or self._moves.fault(subscription)) is not None:
            raise fault
        inbox, doubts, told = Inbox(self._inboxes), Doubts(), ""

        async def redeclare() -> ConfigurationError | None:
            nonlocal told
            self._cascade.forget()
            pruned = await self._topology.declare_again(subscription, partial(self._declare, [subscription]))
            fault = self._faults.get(subscription.name)
            why = str(fault) if isinstance(fault, AccessRefused) else ""
            if why and why != told:
                logger().warning("not declared", subscription=subscription.name, error=why)
            told = why
            return pruned

        async def ensure() -> ConfigurationError | None:
            await self._moves.read()
            await self._moves.over(subscription)
            return await redeclare() or self._moves.fault(subscription)

        own = self._names.queue(subscription)
        feeds = [Feed(self._consuming, own, inbox, limit, ensure, doubts, ordered=subscription.ordered)]
        feeds += [
            Feed(self._consuming, source, inbox, limit, None, doubts, ordered=subscription.ordered)
            for source in subscription.sources
        ]
        settling = self._settling(subscription, redeclare, doubts)
        async with asyncio.TaskGroup() as tasks:
            if self._moves.moving(subscription):
                feeds[0].leave()
            keeping = [tasks.create_task(feed.keep(), name=f"feed {own}") for feed in feeds]
            keeping.append(tasks.create_task(self._leaving(subscription, feeds[0]), name=f"moves of {own}"))
            self._inboxes.add(inbox)
            try:
                yield RabbitMQConsumer(inbox, feeds, settling, doubts)
            finally:
                self._inboxes.discard(inbox)
                for task in keeping:
                    task.cancel()

    def _settling(
        self,
        subscription: Subscription,
        redeclare: Callable[[], Awaitable[ConfigurationError | None]],
        doubts: Doubts,
    ) -> Settling:
        return Settling(
            subscription,
            self._names,
            self.publish,
            self._publisher.publish,
            self._entrance_of(subscription.service).store,
            redeclare,
            self._cascade.ready,
            self._answer,
            self._suspects_of(subscription.service),
            doubts,
        )

    async def aclose(self) -> None:
        """End the publisher; the links close with the scope that `open` made."""
        for publisher in (self._publisher, *(publisher for _, publisher in self._entrances.values())):
            await publisher.aclose()
        await self._requests.aclose()
        await self._answers.aclose()

    async def _leaving(self, subscription: Subscription, feed: Feed) -> None:
        async for moving in self._moves.each(subscription):
            if moving:
                feed.leave()

    def _suspects_of(self, service: str) -> Suspects:
        if service not in self._suspects:
            stream, entrance = self._names.suspects(service), self._names.retry(service)

            async def declare() -> None:
                await topology.declare_stream(self._addresses, stream, topology.SUSPECTS, (entrance, topology.MARKS))

            store = self._entrance_of(service).store
            self._suspects[service] = Suspects(self._consuming, stream, entrance, store, declare)
        return self._suspects[service]

    def _entrance_of(self, service: str) -> Entrance:
        if service not in self._entrances:
            publisher = Publisher(self._publishing, self._names.events, self._timeout, whole=True)
            begin = partial(self._start, f"letters of {service}", publisher.keep)
            self._entrances[service] = Entrance(publisher, begin), publisher
        return self._entrances[service][0]

    def _answer(self, address: str, reply: Message) -> None:
        self._start("answers", self._answers.keep)
        self._answers.send(address, reply)

    def _start(self, name: str, keep: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start what not every program needs, when it is first needed."""
        if name not in self._started and self._tasks is not None:
            self._started[name] = self._tasks.create_task(keep(), name=name)

    def _parcel(self, outgoing: Outgoing) -> Parcel:
        message = outgoing.message
        exchange, key = (self._events, message.type) if outgoing.address is None else ("", outgoing.address)
        added = None
        if outgoing.delay:
            exchange = delay.entrance(self._names, outgoing.delay)
            if outgoing.address is None:
                added = {**delay.headers(outgoing.delay, delay.TO_EVENTS), ROUTED: True}
            else:
                added = delay.headers(outgoing.delay, delay.TO_QUEUE)
        return Parcel(
            id=message.id,
            exchange=exchange,
            key=key,
            flags=envelope.FLAGS,
            properties=envelope.encode(message, added),
            body=message.body,
            mandatory=outgoing.required or outgoing.address is not None or added is not None,
        )
