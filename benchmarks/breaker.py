"""What a breaker and a rate cost per delivery: `python -m benchmarks.breaker`, on memory and on a private broker.

The same events are handled by the same worker, in turns: as they are, with a breaker that stays closed, and at a rate
that is never reached. CPU time, as machines are busy with other things; read the ratios of one run.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks.measure import order
from benchmarks.peers.tidegate import Placed
from bus import Service, Settings, breaker, client, discovery
from bus.client import Bus
from bus.middleware.logging import logging
from bus.worker import Worker


TOTAL = 10_000
ROUNDS = 7
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "breaker": ({"middleware": [breaker()]}, {}),
    "rate": ({}, {"rate": "10000000/s"}),
}


async def seconds(url: str, name: str, way: str) -> float:
    """Return the seconds of CPU time from the first run to the last."""
    settings, done, times = Settings(url=url), asyncio.Event(), []
    of_service, of_handler = WAYS[way]
    service = Service(name, concurrency=128, **of_service)

    @service.on(Placed, name="orders", **of_handler)
    async def orders(placed: Placed) -> None:
        times.append(time.process_time())
        if len(times) == TOTAL:
            done.set()

    async with client.transport(settings) as transport:
        events = discovery.named([service])
        await transport.declare([handler.subscription(events) for handler in service.handlers])
        bus = Bus(transport, settings, "/bench")
        for first in range(0, TOTAL, 500):
            await bus.publish(*(Placed.model_validate(order(n)) for n in range(first, first + 500)))
        worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await done.wait()
            stop.set()
    return times[-1] - times[0]


def compare(url: str, where: str) -> None:
    """Measure every way in turn, and print medians and ratios."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way, rounds in found.items():
            rounds.append(asyncio.run(seconds(url, f"bench{number}{way}", way)) / TOTAL * 1_000_000)
    plain = statistics.median(found["plain"])
    for way, rounds in found.items():
        middle, span = statistics.median(rounds), f"{min(rounds):.1f} to {max(rounds):.1f}"
        print(f"{where:9} {way:8} {middle:6.1f} µs a delivery ({span})  × {middle / plain:.3f}")


def main() -> None:
    """Measure on memory, then on RabbitMQ."""
    from tests.broker.node import Node

    compare("memory://", "memory")
    node = Node()
    try:
        node.start()
        compare(node.url(), "rabbitmq")
    finally:
        node.close()


if __name__ == "__main__":
    main()
