"""The broker's settings: RabbitMQ takes them, and does what they are for."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel

from .compose import services
from .deployed import Deployed


STUCK = 40
"""More than the 32 that RabbitMQ by itself lets wait."""


async def test_retries_that_are_stuck_hold_up_nobody_elses_and_a_lost_one_comes_soon() -> None:
    node = Deployed()
    try:
        node.start()
        kind, program, *arguments = services()["rabbitmq"]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "rabbitmq-diagnostics")
        node.run(program, *arguments)
        told = node.ctl("eval", "application:get_all_env(rabbit).")
        assert "{dead_letter_worker_publisher_confirm_timeout,3000}" in told.replace(" ", "")
        assert "{dead_letter_worker_consumer_prefetch,1000}" in told.replace(" ", "")
        async with await aio_pika.connect(node.login()) as connection, connection.channel() as channel:
            await step(channel, "jammed", "honest")
            full = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
            jammed = await channel.declare_queue("jammed", durable=True, arguments=full)
            await jammed.bind("return", "jammed")
            honest = await channel.declare_queue("honest", durable=True, arguments={"x-queue-type": "quorum"})
            await honest.bind("return", "honest")
            exchange = await channel.get_exchange("retry")
            for _ in range(STUCK):
                await exchange.publish(aio_pika.Message(b"stuck", delivery_mode=2), "jammed")
            await exchange.publish(aio_pika.Message(b"goes on", delivery_mode=2), "honest")
            assert await came(honest) == b"goes on"

            # what finds no queue is kept, and tried again when the time-out of its confirm is over
            await exchange.publish(aio_pika.Message(b"lost", delivery_mode=2), "late")
            await asyncio.sleep(0.5)
            late = await channel.declare_queue("late", durable=True, arguments={"x-queue-type": "quorum"})
            await late.bind("return", "late")
            assert await came(late) == b"lost"
    finally:
        node.close()


async def step(channel: AbstractChannel, *keys: str) -> None:
    """Declare one step of the retries as the transport does: a queue that gives back what waited for its time."""
    retry = await channel.declare_exchange("retry", aio_pika.ExchangeType.TOPIC, durable=True)
    await channel.declare_exchange("return", aio_pika.ExchangeType.TOPIC, durable=True)
    arguments = {
        "x-queue-type": "quorum",
        "x-message-ttl": 100,
        "x-dead-letter-exchange": "return",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    queue = await channel.declare_queue("retry.100", durable=True, arguments=arguments)
    await queue.bind(retry, "#")


async def came(queue: aio_pika.abc.AbstractQueue) -> bytes:
    """Return the body of what comes to a queue, within the 15 s in which nothing comes with RabbitMQ's own settings."""
    async with queue.iterator(timeout=15) as messages:
        async for message in messages:
            await message.ack()
            return message.body
    pytest.fail("nothing came")
