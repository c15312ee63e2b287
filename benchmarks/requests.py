"""Requests per second and their latency, beside FastStream's: `python -m benchmarks.requests`, on a private broker.

The same typed request and answer, one process that answers and one that asks, in turns; the request goes through the
topic exchange into a durable quorum queue, persistent, and is acked by hand after the handler. Ours are confirmed, and
the answer is published as an event too. Once one at a time, once 64 at once. Read the ratios of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika

from benchmarks.__main__ import _subscription
from benchmarks.measure import Order, Reserved, order
from benchmarks.peers.tidegate import Done, Placed
from bus import Service, Settings, client, connect, discovery
from bus.middleware.logging import logging
from bus.transport.rabbitmq.topology import Names, queue_arguments
from bus.worker import Worker


PEERS = ("tidegate", "faststream")
AT_ONCE = {1: 1_500, 64: 6_000}
"""How many wait at once, and how many requests are made of each kind."""
WARM_UP = 200


async def tidegate_serve(url: str) -> None:
    """Answer until the end of the process."""
    service = Service("bench", concurrency=128)

    @service.on(Placed)
    async def orders(placed: Placed) -> Done:
        return Done(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)

    settings, events = Settings(url=url), discovery.named([service])
    async with client.transport(settings) as transport:
        worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
        await worker.run(asyncio.Event())


async def tidegate_ask(url: str, total: int, at_once: int) -> dict[str, float]:
    """Ask, and return rate and latencies."""
    async with connect(url) as bus:
        events = [Placed.model_validate(order(number)) for number in range(total)]
        return await asked(total, at_once, lambda number: bus.request(events[number], Done, timeout=20))


async def faststream_serve(url: str) -> None:
    """Answer until the end of the process."""
    from faststream.rabbit import Channel, RabbitBroker

    peer: Any = importlib.import_module("benchmarks.peers.faststream_peer")
    broker = RabbitBroker(url, logger=None, default_channel=Channel(prefetch_count=256))

    @broker.subscriber(peer.QUEUE)
    async def handle(placed: Order) -> Reserved:
        return Reserved(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)

    async with broker:
        await broker.start()
        await asyncio.Event().wait()


async def faststream_ask(url: str, total: int, at_once: int) -> dict[str, float]:
    """Ask, and return rate and latencies."""
    from faststream.rabbit import RabbitBroker

    peer: Any = importlib.import_module("benchmarks.peers.faststream_peer")
    events = [Order.model_validate(order(number)) for number in range(total)]
    async with RabbitBroker(url, logger=None) as broker:

        async def ask(number: int) -> Reserved:
            answer = await broker.request(
                events[number], exchange=peer.EXCHANGE, routing_key="bench.placed", persist=True, timeout=20
            )
            return Reserved.model_validate(await answer.decode())

        return await asked(total, at_once, ask)


async def asked(total: int, at_once: int, ask: Callable[[int], Awaitable[Any]]) -> dict[str, float]:
    """Ask for every number, so many at once, and measure what comes after the first ones."""
    took: list[float] = []
    numbers = iter(range(total))
    clock = time.perf_counter

    async def one_after_the_other(share: int) -> None:
        for number in numbers:
            began = clock()
            assert (await ask(number)).customer_id == f"customer-{number:08}"
            took.append(clock() - began)
            if len(took) >= share:
                return

    await one_after_the_other(WARM_UP)
    took.clear()
    began = clock()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(one_after_the_other(total))
    seconds, took = clock() - began, sorted(took)
    return {"rate": len(took) / seconds, "p50": took[len(took) // 2] * 1e3, "p99": took[len(took) * 99 // 100] * 1e3}


async def prepare(url: str) -> None:
    """Declare the queue, empty."""
    subscription: Any = _subscription("orders", "placed")
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("events", "topic", durable=True)
        queue = await channel.declare_queue(
            "bench.orders", durable=True, arguments=queue_arguments(Names(), subscription)
        )
        await queue.bind(exchange, "bench.placed")
        await queue.purge()


def run(peer: str, url: str, at_once: int) -> dict[str, float]:
    """Run one peer once: a process that answers, and one that asks."""
    asyncio.run(prepare(url))
    command = [sys.executable, "-m", "benchmarks.requests", "--url", url, "--peer", peer]
    answering = subprocess.Popen([*command, "--serve"], stderr=subprocess.DEVNULL)
    try:
        asking = [*command, "--ask", str(at_once)]
        done = subprocess.run(asking, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=300)
    finally:
        answering.kill()
        answering.wait()
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def measure(url: str, rounds: int) -> None:
    """Measure every peer in turn, and print medians."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {(p, n): [] for n in AT_ONCE for p in PEERS}
    for _ in range(rounds):
        for (peer, at_once), runs in found.items():
            runs.append(run(peer, url, at_once))
    print(f"{'':12} {'at once':>7} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8}   (medians of {rounds} rounds)")
    for (peer, at_once), runs in found.items():
        rate, middle, high = (statistics.median(each[key] for each in runs) for key in ("rate", "p50", "p99"))
        print(f"{peer:12} {at_once:7} {rate:10,.0f} {middle:8.1f} {high:8.1f}")


def main() -> None:
    """Measure, or be one of the processes of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a broker; without it, a private one is started")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        asyncio.run(globals()[f"{chosen.peer}_serve"](chosen.url))
    elif chosen.ask:
        result = asyncio.run(globals()[f"{chosen.peer}_ask"](chosen.url, AT_ONCE[chosen.ask], chosen.ask))
        print(json.dumps(result))
    elif chosen.url:
        measure(chosen.url, chosen.rounds)
    else:
        from tests.broker.node import Node

        node = Node()
        node.start()
        try:
            measure(node.url(), chosen.rounds)
        finally:
            node.stop()


if __name__ == "__main__":
    main()
