"""How late delays are: `python -m benchmarks.delays`, on a private broker that does nothing else.

Lateness is wall time in the handler, less wall time before the publish, less the delay. Single ones are published one
by one, each when the one before has come; the mixed ones all at once.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence

from benchmarks.measure import order
from benchmarks.peers.tidegate import Placed
from bus import Service, Settings, client, discovery
from bus.client import Bus
from bus.middleware.logging import logging
from bus.worker import Worker


MIXED, SINGLE = 300, 100
LONGEST = 8.0


class Arrivals:
    """When each event was due, and how late it came."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}
        self.late: list[float] = []
        self._grown = asyncio.Event()

    def came(self, placed: Placed) -> None:
        """Note that an event came."""
        self.late.append(time.time() - self.due[str(placed.order_id)])
        self._grown.set()

    async def reach(self, count: int) -> None:
        """Wait until so many came."""
        while len(self.late) < count:
            self._grown.clear()
            await self._grown.wait()

    async def publish(self, bus: Bus, number: int, delay: float) -> None:
        """Publish an event and note when it is due."""
        placed = Placed.model_validate(order(number))
        self.due[str(placed.order_id)] = time.time() + delay
        await bus.publish(placed, delay=delay)


async def measure(url: str) -> tuple[list[float], list[float], float, float]:
    """Return how late the mixed ones and the single ones were, and the first publish and the next, in seconds."""
    settings, arrivals, chance = Settings(url=url), Arrivals(), random.Random(6)
    service, stop, started = Service("bench", concurrency=64), asyncio.Event(), asyncio.Event()

    @service.on(Placed, name="late")
    async def late(placed: Placed) -> None:
        arrivals.came(placed)

    async with client.transport(settings) as transport, asyncio.TaskGroup() as tasks:
        bus, events = Bus(transport, settings, "/bench"), discovery.named([service])
        worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
        tasks.create_task(worker.run(stop, started.set))
        await started.wait()
        times = [time.perf_counter()]
        for number in range(2):
            await arrivals.publish(bus, number, 0.1)
            times.append(time.perf_counter())
        await arrivals.reach(2)
        for number in range(SINGLE):
            await arrivals.publish(bus, 2 + number, chance.uniform(0.1, 0.8))
            await arrivals.reach(3 + number)
        async with asyncio.TaskGroup() as publishing:
            for number in range(MIXED):
                delay = chance.uniform(0.1, LONGEST)
                publishing.create_task(arrivals.publish(bus, 2 + SINGLE + number, delay))
        await arrivals.reach(2 + SINGLE + MIXED)
        stop.set()
    single, mixed = arrivals.late[2 : 2 + SINGLE], arrivals.late[2 + SINGLE :]
    return mixed, single, times[1] - times[0], times[2] - times[1]


def told(what: str, late: Sequence[float]) -> str:
    """Return the figures of one run in a line."""
    ms = sorted(1000 * one for one in late)
    p99 = ms[-(-99 * len(ms) // 100) - 1]
    return f"{what}: {ms[0]:.1f} to {ms[-1]:.1f} ms late, median {statistics.median(ms):.1f}, p99 {p99:.1f}"


def main() -> None:
    """Measure on a broker of its own, and print."""
    from tests.broker.node import Node

    node = Node()
    try:
        node.start()
        mixed, single, first, then = asyncio.run(measure(node.url()))
    finally:
        node.close()
    print(told(f"{MIXED} mixed delays of 0.1 to {LONGEST:g} s in one go", mixed))
    print(told(f"{SINGLE} single delays of 0.1 to 0.8 s", single))
    print(f"publishing the first delay of all took {1000 * first:.0f} ms (it declares), the next {1000 * then:.1f}")


if __name__ == "__main__":
    main()
