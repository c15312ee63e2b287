"""What the suspect rule costs: `python -m benchmarks.suspects`, on a private broker.

The same events are handled by the same worker, one at a time: once as they are, and once after they came back twice
without an outcome, so that each run is marked before it begins and after it ended. Read the difference per delivery.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.measure import order
from benchmarks.peers.tidegate import Placed
from bus import Service, Settings, client, discovery
from bus.client import Bus
from bus.middleware.logging import logging
from bus.transport import Transport
from bus.transport.rabbitmq.suspects import SUSPECT
from bus.worker import Worker


TOTAL = 200
ROUNDS = 3


async def returned(transport: Transport, service: Service) -> None:
    """Take every event and leave without an outcome, as a worker that dies does, until each is a suspect."""
    subscription = service.handlers[0].subscription(discovery.named([service]))
    for _ in range(SUSPECT):
        async with transport.consume(subscription, limit=TOTAL) as consumer:
            for _ in range(TOTAL):
                await anext(consumer)


async def seconds(url: str, name: str, *, suspected: bool) -> float:
    """Return the seconds from the first run to the last."""
    settings, done, times = Settings(url=url), asyncio.Event(), []
    service = Service(name, concurrency=1)

    @service.on(Placed, name="orders")
    async def orders(placed: Placed) -> None:
        times.append(time.perf_counter())
        if len(times) == TOTAL:
            done.set()

    async with client.transport(settings) as transport:
        events = discovery.named([service])
        await transport.declare([handler.subscription(events) for handler in service.handlers])
        await Bus(transport, settings, "/bench").publish(*(Placed.model_validate(order(n)) for n in range(TOTAL)))
        if suspected:
            await returned(transport, service)
        worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await done.wait()
            stop.set()
    return times[-1] - times[0]


def main() -> None:
    """Measure both in turn, and print the medians."""
    from tests.broker.node import Node

    found: dict[bool, list[float]] = {False: [], True: []}
    node = Node()
    try:
        node.start()
        for number in range(ROUNDS):
            for suspected, rounds in found.items():
                name = f"bench{number}{'suspected' if suspected else 'plain'}"
                rounds.append(asyncio.run(seconds(node.url(), name, suspected=suspected)) / (TOTAL - 1) * 1000)
    finally:
        node.close()
    plain, marked = (statistics.median(rounds) for rounds in found.values())
    print(f"plain {plain:.2f} ms a delivery, suspected {marked:.2f} ms, the difference {marked - plain:.2f} ms")


if __name__ == "__main__":
    main()
