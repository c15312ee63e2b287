"""aio-pika as a careful user writes it by hand: typed decoding, ack after the handler, confirms."""

from __future__ import annotations

import asyncio

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.measure import WINDOW, Order, Reserved, Stopwatch, in_window, order


SETTINGS = "connect_robust, one connection, prefetch 256, ack per message, mandatory, persistent, confirms"


def _message(model: Order | Reserved) -> aio_pika.Message:
    body = model.model_dump_json().encode()
    return aio_pika.Message(
        body, content_type="application/json", delivery_mode=2, headers={"cloudEvents_type": "bench"}
    )


async def publish(url: str, total: int, level: str) -> dict[str, float]:
    """Publish orders, each call awaited, a window of calls at once."""
    events = [Order.model_validate(order(number)) for number in range(total)]
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("events")
        return await in_window(
            total, lambda number: exchange.publish(_message(events[number]), "bench.placed", mandatory=True)
        )


async def consume(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue."""
    watch = Stopwatch(total)

    async def handle(message: AbstractIncomingMessage) -> None:
        watch.start()
        Order.model_validate_json(message.body)
        await message.ack()
        watch.one()

    return await _work(url, handle, watch)


async def loop(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue, publish a result for each, ack."""
    watch = Stopwatch(total)
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("events")

        async def handle(message: AbstractIncomingMessage) -> None:
            watch.start()
            placed = Order.model_validate_json(message.body)
            done = Reserved(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)
            await exchange.publish(_message(done), "bench.reserved", mandatory=True)
            await message.ack()
            watch.one()

        return await _work(url, handle, watch)


async def _work(url: str, handle: object, watch: Stopwatch) -> dict[str, float]:
    async with await aio_pika.connect_robust(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=WINDOW)
        queue = await channel.get_queue("bench.orders")
        await queue.consume(handle)  # type: ignore[arg-type]
        await watch.done.wait()
        await asyncio.sleep(0.1)
    return watch.result()
