"""A stage for the contract's tests: services hosted on any transport, and lists that a test can wait on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import aio_pika
import pytest

from bus import Bus, BusUnavailable, Event, Letter, Message, Middleware, Service, Settings, client, discovery
from bus.health import Health
from bus.message import Outgoing
from bus.middleware.logging import logging
from bus.transport import Transport
from bus.transport.memory import MemoryTransport
from bus.watchdog import THRESHOLD, Watchdog, watching
from bus.worker import Worker


T = TypeVar("T")

WITHIN = 20.0


class Placed(Event, type="order.placed"):
    number: int = 0
    note: str = ""


class Shipped(Event, type="order.shipped"):
    number: int = 0


class Log(list[T], Generic[T]):
    """A list that a test waits on."""

    def __init__(self) -> None:
        super().__init__()
        self._grown = asyncio.Event()

    def append(self, item: T) -> None:
        super().append(item)
        self._grown.set()

    async def reaches(self, size: int, within: float = WITHIN) -> None:
        await self.holds(lambda log: len(log) >= size, f"{size} entries", within)

    async def holds(self, condition: Callable[[list[T]], bool], what: str, within: float = WITHIN) -> None:
        try:
            async with asyncio.timeout(within):
                while not condition(self):
                    self._grown.clear()
                    await self._grown.wait()
        except TimeoutError:
            raise AssertionError(f"waited {within} s for {what}; there is {list(self)[-20:]}") from None


class Hosted:
    """A worker that runs."""

    def __init__(self, task: asyncio.Task[None], stop: asyncio.Event, worker: Worker, watchdog: Watchdog) -> None:
        self.task = task
        self.worker = worker
        self.health = Health(worker, stop, watchdog)
        self._stop = stop

    async def consumes(self) -> None:
        """Wait until every handler consumes, or would but for a pause: a worker that has started may not yet."""
        async with asyncio.timeout(WITHIN):
            while self.health.ready().status != 200:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop as a signal does, and wait for the end."""
        self._stop.set()
        await asyncio.wait([self.task], timeout=WITHIN)
        assert self.task.done()
        self.task.result()

    async def die(self) -> None:
        """End without a goodbye, as far as that can be had inside of one process."""
        self.task.cancel()
        await asyncio.wait([self.task], timeout=WITHIN)


class Stage:
    """One transport, and whatever a test hosts on it."""

    def __init__(self, kind: str, transport: Transport, settings: Settings) -> None:
        self.kind = kind
        self.transport = transport
        self.settings = settings
        self.bus = Bus(transport, settings, "/contract")

    @asynccontextmanager
    async def hosting(
        self,
        *services: Service,
        middleware: Sequence[Middleware] = (),
        provided: Mapping[Any, Any] | None = None,
        **changed: Any,
    ) -> AsyncIterator[Hosted]:
        """Host services in a worker; it is stopped in the end, unless the test ended it."""
        stop, started = asyncio.Event(), asyncio.Event()
        worker = Worker(
            self.transport,
            services,
            app="contract",
            events=discovery.named(services),
            settings=replace(self.settings, **changed),
            log=logging(),
            middleware=middleware,
            provided=provided,
        )
        with watching(worker.flows, THRESHOLD) as watchdog:
            async with asyncio.TaskGroup() as tasks:
                hosted = Hosted(tasks.create_task(worker.run(stop, started.set)), stop, worker, watchdog)
                hosted.task.add_done_callback(lambda _: started.set())
                async with asyncio.timeout(WITHIN):
                    await started.wait()
                try:
                    yield hosted
                finally:
                    stop.set()

    async def declare(self, *services: Service) -> None:
        """Declare what the services subscribe to, without a worker."""
        events = discovery.named(services)
        await self.transport.declare([handler.subscription(events) for s in services for handler in s.handlers])

    async def raw(self, type: str, body: bytes, headers: Mapping[str, Any] | None = None, **properties: Any) -> None:
        """Publish bytes as a plain client does: RabbitMQ's routing key is all that it says of itself."""
        if self.kind == "memory":
            message = Message(
                id="raw", type=type, version=None, source="", time=datetime.now(UTC), body=body, **properties
            )
            await self.transport.publish([Outgoing(message)])
            return
        async with await aio_pika.connect(self.settings.url) as connection, connection.channel() as channel:
            exchange = await channel.get_exchange("events", ensure=False)
            message_of_theirs = aio_pika.Message(body, headers=dict(headers or {}), delivery_mode=2, **properties)
            await exchange.publish(message_of_theirs, type, mandatory=False)

    async def ready(self, name: str) -> int:
        """Return how many messages wait in a queue that no worker holds."""
        if isinstance(self.transport, MemoryTransport):
            return len(self.transport.queues[name].ready)
        async with await aio_pika.connect(self.settings.url) as connection, connection.channel() as channel:
            return (await channel.declare_queue(name, passive=True)).declaration_result.message_count or 0

    async def letters(self, service: str, size: int = 1, within: float = WITHIN) -> list[Letter]:
        """Return the open letters of a service, as soon as there are so many."""
        async with asyncio.timeout(within):
            while True:
                # a stream that was declared a moment ago may have no replica yet
                with suppress(BusUnavailable):
                    found = [letter async for letter in self.transport.dead_letters.browse(service)]
                    if len(found) >= size:
                        return found
                await asyncio.sleep(0.05)


async def told(caplog: pytest.LogCaptureFixture, *parts: str) -> list[str]:
    """Wait for a log line that has these parts; return all that do."""
    async with asyncio.timeout(WITHIN):
        while not (found := [text for text in caplog.messages if all(part in text for part in parts)]):
            await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def staged(kind: str, url: str, **changed: Any) -> AsyncIterator[Stage]:
    """Open a stage on a transport."""
    settings = Settings(url=url, **changed)
    async with client.transport(settings) as transport:
        yield Stage(kind, transport, settings)
