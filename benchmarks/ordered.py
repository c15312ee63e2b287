"""What `ordered_by` costs a delivery: `python -m benchmarks.ordered`, on memory and on a private broker.

The same events are handled by the same worker: as they are, ordered by a field of 16 values, and ordered by one whose
values are all different. Rounds are interleaved; read the ratios. CPU is the process's, from the first run to the last.
"""

from __future__ import annotations

import asyncio
import statistics
from uuid import UUID

from benchmarks.measure import WINDOW, Stopwatch, order
from benchmarks.peers.tidegate import Placed
from bus import Service, Settings, client, discovery
from bus.client import Bus
from bus.logs import configure
from bus.middleware.logging import logging
from bus.worker import Worker


TOTAL = 10_000
ROUNDS = 5
KINDS = {"plain": None, "16 keys": "customer_id", "all keys differ": "order_id"}


async def consumed(url: str, name: str, by: str | None) -> dict[str, float]:
    """Return the rate and the CPU of a queue that is full at the start."""
    settings, watch, stop = Settings(url=url), Stopwatch(TOTAL), asyncio.Event()
    service = Service(name, concurrency=WINDOW // 2)
    extra = {"ordered_window": WINDOW} if by is not None else {}

    @service.on(Placed, name="orders", ordered_by=by, **extra)
    async def orders(placed: Placed) -> None:
        watch.start()
        watch.one()

    async with client.transport(settings) as transport:
        events = discovery.named([service])
        await transport.declare([handler.subscription(events) for handler in service.handlers])
        bus = Bus(transport, settings, "/bench")
        for start in range(0, TOTAL, 500):
            numbers = range(start, start + 500)
            await bus.publish(*(placed(number) for number in numbers))
        worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop))
            await watch.done.wait()
            stop.set()
    return watch.result()


def placed(number: int) -> Placed:
    """Return an order; its customer is one of 16."""
    return Placed.model_validate(
        order(number) | {"customer_id": f"customer-{number % 16}", "order_id": UUID(int=number)}
    )


def measure(what: str, url: str) -> None:
    """Measure every kind in turn, and print medians and ratios."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(ROUNDS):
        for kind, by in KINDS.items():
            found[kind].append(asyncio.run(consumed(url, f"bench{number}{kind.replace(' ', '_')}", by)))
    cpu = {kind: statistics.median(one["cpu"] for one in rounds) for kind, rounds in found.items()}
    for kind, rounds in found.items():
        rate = statistics.median(one["rate"] for one in rounds)
        ratio = cpu[kind] / cpu["plain"]
        print(f"{what:9} {kind:16} {rate:9,.0f}/s  CPU {cpu[kind]:5.1f} µs a delivery  × {ratio:.2f}", flush=True)


def main() -> None:
    """Measure both transports."""
    from tests.broker.node import Node

    configure("warning", "json")
    measure("memory", "memory://")
    node = Node()
    try:
        node.start()
        measure("rabbitmq", node.url())
    finally:
        node.close()


if __name__ == "__main__":
    main()
