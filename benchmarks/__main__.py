"""This project, raw aio-pika and FastStream, interleaved, on one broker: rates, CPU, and ratios in the same run.

    make bench            (a private broker, 3 rounds of 20,000 events)
    python -m benchmarks --url amqp://guest:guest@localhost/ --rounds 5

Quorum queues, persistent messages, publisher confirms, manual ack after the handler, typed decoding, a window of 256,
asyncio's own loop, one process per run. Nothing here is a test: machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import aio_pika

from benchmarks.measure import Order, order
from bus.transport.rabbitmq.topology import Names, queue_arguments


PEERS = ("tidegate", "raw_aio_pika", "faststream_peer")
WORKLOADS = ("publish", "consume", "loop")


async def prepare(url: str, workload: str, total: int) -> None:
    """Empty the queues, and fill the one that is consumed."""
    subscriptions = {name: _subscription(name, kind) for name, kind in (("orders", "placed"), ("results", "reserved"))}
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("events", "topic", durable=True)
        for name, subscription in subscriptions.items():
            queue = await channel.declare_queue(
                f"bench.{name}", durable=True, arguments=queue_arguments(Names(), subscription)
            )
            await queue.bind(exchange, subscription.patterns[0])
            await queue.purge()
        if workload != "publish":
            for start in range(0, total, 500):
                await asyncio.gather(*(exchange.publish(_filled(n), "bench.placed") for n in range(start, start + 500)))


def _subscription(name: str, kind: str) -> object:
    from bus.transport import Subscription

    return Subscription(service="bench", handler=name, patterns=(f"bench.{kind}",))


def _filled(number: int) -> aio_pika.Message:
    headers = {
        "cloudEvents_id": f"{number:032x}",
        "cloudEvents_source": "/bench",
        "cloudEvents_specversion": "1.0",
        "cloudEvents_type": "bench.placed",
        "cloudEvents_time": "2026-11-24T12:00:00.000000+00:00",
        "cloudEvents_dataschema": "urn:tidegate:bench.placed:1",
        "cloudEvents_correlationid": f"{number:032x}",
    }
    body = Order.model_validate(order(number)).model_dump_json().encode()
    return aio_pika.Message(
        body, content_type="application/json", delivery_mode=2, message_id=f"{number:032x}", headers=headers
    )


def run(peer: str, workload: str, url: str, total: int, level: str) -> dict[str, float]:
    """Run one peer once in a process of its own."""
    asyncio.run(prepare(url, workload, total))
    command = [sys.executable, "-m", "benchmarks.one", peer, workload, url, str(total), level]
    with Path("/dev/null" if level == "warning" else ".cache/bench.log").open("w") as log:
        done = subprocess.run(
            command, capture_output=False, stdout=subprocess.PIPE, stderr=log, check=True, timeout=300
        )
    return json.loads(done.stdout)


def main() -> None:
    """Measure every peer in turn, as often as asked, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a broker; without it, a private one is started")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    Path(".cache").mkdir(exist_ok=True)
    if chosen.url:
        measure(chosen.url, chosen.events, chosen.rounds)
        return
    from tests.broker.node import Node

    node = Node()
    node.start()
    try:
        measure(node.url(), chosen.events, chosen.rounds)
    finally:
        node.stop()


def measure(url: str, total: int, rounds: int) -> None:
    """Run the rounds and print what came of them."""
    for peer in PEERS:
        print(f"{peer}: {importlib.import_module(f'benchmarks.peers.{peer}').SETTINGS}")
    runs = [(peer, workload, "warning") for workload in WORKLOADS for peer in PEERS]
    runs += [("tidegate", "consume", "info"), ("tidegate", "loop", "info")]
    results: dict[tuple[str, str, str], list[dict[str, float]]] = {key: [] for key in runs}
    for number in range(rounds):
        for peer, workload, level in runs:
            result = run(peer, workload, url, total, level)
            results[peer, workload, level].append(result)
            print(f"round {number + 1}: {peer:16} {workload:8} {level:8} {result['rate']:9,.0f}/s", flush=True)
    print(f"\n{'':16} {'':8} {'log':8} {'median/s':>9} {'min':>9} {'max':>9} {'CPU µs':>7}  tidegate is")
    for (peer, workload, level), found in results.items():
        rates = [one["rate"] for one in found]
        middle = statistics.median(rates)
        ours = statistics.median(one["rate"] for one in results["tidegate", workload, "warning"])
        cpu = statistics.median(one["cpu"] for one in found)
        print(
            f"{peer:16} {workload:8} {level:8} {middle:9,.0f} {min(rates):9,.0f} {max(rates):9,.0f} {cpu:7.0f}"
            f"  × {ours / middle:.1f}"
        )


if __name__ == "__main__":
    main()
