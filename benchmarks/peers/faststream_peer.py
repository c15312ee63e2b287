"""FastStream, as its documentation shows it."""

from __future__ import annotations

from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from faststream.rabbit.schemas.queue import QueueType

from benchmarks.measure import WINDOW, Order, Reserved, Stopwatch, in_window, order


SETTINGS = "RabbitBroker, prefetch 256, default ack policy (ack after the handler), persistent, mandatory, typed body"
EXCHANGE = RabbitExchange("events", type=ExchangeType.TOPIC, durable=True)
QUEUE = RabbitQueue(
    "bench.orders", declare=False, durable=True, routing_key="bench.placed", queue_type=QueueType.QUORUM
)


async def publish(url: str, total: int, level: str) -> dict[str, float]:
    """Publish orders, each call awaited, a window of calls at once."""
    events = [Order.model_validate(order(number)) for number in range(total)]
    async with RabbitBroker(url, logger=None) as broker:
        return await in_window(
            total,
            lambda number: broker.publish(
                events[number], exchange=EXCHANGE, routing_key="bench.placed", persist=True, mandatory=True
            ),
        )


async def consume(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue."""
    watch = Stopwatch(total)
    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=WINDOW))

    @broker.subscriber(QUEUE)
    async def handle(placed: Order) -> None:
        watch.start()
        watch.one()

    return await _work(broker, watch)


async def loop(url: str, total: int, level: str) -> dict[str, float]:
    """Handle what is in the queue, publish a result for each, ack."""
    watch = Stopwatch(total)
    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=WINDOW))

    @broker.subscriber(QUEUE)
    async def handle(placed: Order) -> None:
        watch.start()
        done = Reserved(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)
        await broker.publish(done, exchange=EXCHANGE, routing_key="bench.reserved", persist=True, mandatory=True)
        watch.one()

    return await _work(broker, watch)


async def _work(broker: RabbitBroker, watch: Stopwatch) -> dict[str, float]:
    async with broker:
        await broker.start()
        await watch.done.wait()
    return watch.result()
