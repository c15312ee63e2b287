"""This project, as its users write it."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import Field

from benchmarks.measure import WINDOW, Stopwatch, in_window, order
from bus import Data, Event, Service, Settings, client, discovery
from bus.client import Bus
from bus.logs import configure
from bus.middleware.logging import logging
from bus.worker import Worker


SETTINGS = "App's worker, concurrency=128 (256 unsettled), outcomes logged at {level}, required=True, typed events"


class Line(Data):
    """A line of the order."""

    sku: str
    quantity: Annotated[int, Field(gt=0)]


class Placed(Event, type="bench.placed"):
    """The order of the benchmark."""

    order_id: UUID
    customer_id: str
    lines: tuple[Line, ...]
    placed_at: datetime
    note: str


class Done(Event, type="bench.reserved"):
    """What the loop publishes."""

    order_id: UUID
    customer_id: str
    note: str


async def publish(url: str, total: int, level: str) -> dict[str, float]:
    """Publish orders, each call awaited, a window of calls at once."""
    settings = replace(Settings(), url=url)
    events = [Placed.model_validate(order(number)) for number in range(total)]
    async with client.transport(settings) as transport:
        bus = Bus(transport, settings, "/bench")
        await bus.publish(events[0], required=True)
        return await in_window(total, lambda number: bus.publish(events[number], required=True))


async def consume(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue."""
    watch = Stopwatch(total)
    service = Service("bench", concurrency=WINDOW // 2)

    @service.on(Placed)
    async def orders(placed: Placed) -> None:
        watch.start()
        watch.one()

    return await _work(url, service, watch, level)


async def loop(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue, publish a result for each, ack."""
    watch = Stopwatch(total)
    service = Service("bench", concurrency=WINDOW // 2)

    @service.on(Placed)
    async def orders(placed: Placed) -> Done:
        watch.start()
        return Done(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)

    @service.on(Done, name="results")
    async def results(done: Done) -> None:
        """Only its queue is wanted."""

    return await _work(url, service, watch, level, counted="orders")


async def _work(url: str, service: Service, watch: Stopwatch, level: str, counted: str = "") -> dict[str, float]:
    settings = replace(Settings(), url=url)
    configure(level, "json", sys.stderr)
    stop = asyncio.Event()

    def settled(handler: object, process: object) -> object:
        async def process_and_count(delivery: object) -> object:
            outcome = await process(delivery)  # type: ignore[operator]
            watch.one()
            return outcome

        return process_and_count

    def log(handler: object, process: object) -> object:
        logged = logging()(handler, process)  # type: ignore[arg-type]
        return settled(handler, logged) if counted else logged

    hosted = service
    hosted.handlers = [handler for handler in service.handlers if not counted or handler.name == counted]
    async with client.transport(settings) as transport:
        worker = Worker(transport, [hosted], app="bench", events=discovery.named([hosted]), settings=settings, log=log)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await watch.done.wait()
            stop.set()
    return watch.result()
