"""FastStream in the containment benchmark: one app with a subscriber for each service.

As a careful user writes it: a channel and a prefetch for each subscriber, so that none takes another's; quorum queues;
what fails is tried again (NACK_ON_ERROR, which is at once) up to a delivery limit, and then goes to a dead-letter
queue; nothing is logged for a message that succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas.queue import QueueType
from pydantic import BaseModel

from benchmarks.sick import RESOURCE, SERVICES, Report, use, work


EVENTS = RabbitExchange("events", type=ExchangeType.TOPIC, durable=True)
DEAD = RabbitExchange("sick.dead", type=ExchangeType.FANOUT, durable=True)
PREFETCH = 32
"""As many as a service of ours with its default concurrency may hold."""
ATTEMPTS = 6


class Steady(BaseModel):
    """For a healthy service."""

    at: float


class Work(BaseModel):
    """For the sick service; the fault is what it does to it."""

    at: float
    fault: str = ""


def main(*hosted: str) -> None:
    """Be the worker of these services."""
    broker = RabbitBroker(os.environ["BUS_URL"], log_level=logging.DEBUG, fail_fast=False)
    app = FastStream(broker)
    for service in hosted:
        (_sick if service == "sick" else _healthy)(app, broker, service)
    asyncio.run(app.run(log_level=logging.WARNING))


def _queue(name: str, key: str) -> RabbitQueue:
    arguments = {
        "x-delivery-limit": ATTEMPTS - 1,
        "x-dead-letter-exchange": DEAD.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    return RabbitQueue(name, durable=True, routing_key=key, queue_type=QueueType.QUORUM, arguments=arguments)


def _healthy(app: FastStream, broker: RabbitBroker, service: str) -> None:
    report = Report(service)

    @broker.subscriber(
        _queue(f"{service}.handle", f"containment.{service}"),
        EVENTS,
        channel=Channel(prefetch_count=PREFETCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def handle(event: Steady) -> None:
        report.handled(event.at)


def _sick(app: FastStream, broker: RabbitBroker, service: str) -> None:
    report = Report(service)

    @app.on_startup
    async def connect() -> None:
        await use(int(os.environ[RESOURCE]))

    @app.after_startup
    async def keep_dead_letters() -> None:
        exchange = await broker.declare_exchange(DEAD)
        queue = RabbitQueue(DEAD.name, durable=True, queue_type=QueueType.QUORUM)
        await (await broker.declare_queue(queue)).bind(exchange)

    def subscriber(name: str, key: str) -> Any:
        return broker.subscriber(
            _queue(f"sick.{name}", key),
            EVENTS,
            channel=Channel(prefetch_count=PREFETCH // 2),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )

    @subscriber("handle", "containment.work")
    async def handle(event: Work) -> None:
        if event.fault == "storm":
            await broker.publish(event, exchange=EVENTS, routing_key="containment.echo", persist=True)
            return
        await work(event.fault)
        report.handled(event.at)

    @subscriber("echo", "containment.echo")
    async def echo(event: Work) -> None:
        await broker.publish(event, exchange=EVENTS, routing_key="containment.work", persist=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or SERVICES))
