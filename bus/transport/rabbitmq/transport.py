"""RabbitMQTransport: the seam's verbs, carried out by a publisher, feeds, and aio-pika for the topology."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ...errors import AccessRefused, BusUnavailable, Fate, PublishError, PublishRefused, TidegateError, Unroutable
from ...logs import logger
from ...message import ROUTED, Outgoing
from ...settings import Settings
from .. import Subscription
from . import delay, envelope, topology
from .address import Address, addresses
from .cascade import Cascade, Ways
from .channel import Parcel
from .consumer import Feed, Inbox, RabbitMQConsumer
from .dead_letters import RabbitMQDeadLetters
from .delivery import Settling
from .doubts import Doubts
from .publisher import Publisher
from .supervisor import Backoff, Supervisor
from .suspects import Suspects


class RabbitMQTransport:
    """A way to RabbitMQ, made by `open`. Publishing and consuming have a link each: a blocked one stops no ack."""

    def __init__(self, settings: Settings, hosts: Sequence[Address]) -> None:
        log = logger()
        self._addresses = deque(hosts)
        self._names = topology.Names(settings.namespace)
        self._events = self._names.events
        self._publishing = Supervisor(hosts, "publish", log)
        self._consuming = Supervisor(hosts, "consume", log)
        self._publisher = Publisher(self._publishing, self._names.events, settings.publish_timeout)
        self._cascade = Cascade(self._addresses, self._names, self._publishing, settings.publish_timeout)
        self._dead_letters = RabbitMQDeadLetters(hosts, self._names, settings.publish_timeout)
        self._timeout = settings.publish_timeout
        self._faults: dict[str, TidegateError] = {}
        self._suspects: dict[str, Suspects] = {}
        self._declaring = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._consuming_task: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[RabbitMQTransport]:
        """Open the transport of `settings.url`; connects in the background. Raises ConfigurationError for a bad URL."""
        transport = cls(settings, addresses(settings))
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
                if transport._consuming_task is not None:
                    transport._consuming_task.cancel()
        if failed is not None:
            raise failed

    @property
    def dead_letters(self) -> RabbitMQDeadLetters:
        """The dead letters of services, in their streams."""
        return self._dead_letters

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Declare what the subscriptions need, as soon as a broker answers."""
        # our own link waits, and says so once; only then is it aio-pika's turn
        await self._publishing.link()
        async with self._declaring:
            found = await topology.declare_when_up(self._addresses, self._names, subscriptions, Backoff())
            for subscription in subscriptions:
                self._faults.pop(subscription.name, None)
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

    @asynccontextmanager
    async def consume(self, subscription: Subscription, *, limit: int) -> AsyncIterator[RabbitMQConsumer]:
        """Take deliveries of a subscription, through lost connections; leaving gives back the unsettled."""
        if (fault := self._faults.get(subscription.name)) is not None:
            raise fault
        self._start_consuming()
        inbox, doubts, told = Inbox(), Doubts(), ""

        async def redeclare() -> None:
            nonlocal told
            self._cascade.forget()
            await self.declare([subscription])
            fault = self._faults.get(subscription.name)
            why = str(fault) if isinstance(fault, AccessRefused) else ""
            if why and why != told:
                logger().warning("not declared", subscription=subscription.name, error=why)
            told = why

        own = self._names.queue(subscription)
        feeds = [Feed(self._consuming, own, inbox, limit, redeclare, doubts, ordered=subscription.ordered)]
        feeds += [
            Feed(self._consuming, source, inbox, limit, None, doubts, ordered=subscription.ordered)
            for source in subscription.sources
        ]
        settling = Settling(
            subscription,
            self._names,
            self.publish,
            self._publisher.publish,
            redeclare,
            self._cascade.ready,
            self._suspects_of(subscription.service),
        )
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(feed.keep(), name=f"feed {own}") for feed in feeds]
            try:
                yield RabbitMQConsumer(inbox, feeds, settling, doubts)
            finally:
                for task in keeping:
                    task.cancel()

    async def aclose(self) -> None:
        """End the publisher; the links close with the scope that `open` made."""
        await self._publisher.aclose()

    def _suspects_of(self, service: str) -> Suspects:
        if service not in self._suspects:
            stream = self._names.suspects(service)

            async def declare() -> None:
                await topology.declare_suspects(self._addresses, self._names, service)

            entrance = self._names.retry(service)
            self._suspects[service] = Suspects(self._consuming, stream, entrance, self._publisher.publish, declare)
        return self._suspects[service]

    def _start_consuming(self) -> None:
        # a program that only publishes needs no second connection
        if self._consuming_task is None and self._tasks is not None:
            self._consuming_task = self._tasks.create_task(self._consuming.keep(), name="consume link")

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
