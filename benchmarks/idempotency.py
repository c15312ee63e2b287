"""What `idempotent=True` costs a delivery: `python -m benchmarks.idempotency [memory|rabbitmq]`, on both by default.

The same events are handled by the same worker: as they are, with their completions recorded in a SQLite file, with a
row that the handler writes in the store's transaction, and as duplicates of what was completed. Rounds are interleaved.
CPU is the process's, from the first run to the last; what syncing one row takes on this disk is printed with it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import WINDOW, Stopwatch, in_window, order
from benchmarks.peers.tidegate import Done, Placed
from bus import Service, Settings, SqliteStore, SqliteTransaction, client, discovery
from bus.client import Bus
from bus.logs import configure
from bus.middleware.logging import logging
from bus.store import sqlite
from bus.worker import Worker


ROUNDS = 3
KINDS = {"plain": 2_000, "recorded": 2_000, "in a transaction": 400, "duplicates": 2_000}
SCHEMA = "CREATE TABLE IF NOT EXISTS effects (id TEXT)"


def service_of(kind: str, name: str, store: SqliteStore, watch: Stopwatch) -> Service:
    """Return a service with one handler, which publishes a result for each order."""
    service = Service(name, concurrency=WINDOW // 2, store=store)

    def result(placed: Placed) -> Done:
        watch.start()
        watch.one()
        return Done(order_id=placed.order_id, customer_id=placed.customer_id, note=placed.note)

    async def orders(placed: Placed) -> Done:
        return result(placed)

    async def writing(placed: Placed, transaction: SqliteTransaction) -> Done:
        await transaction.execute("INSERT INTO effects VALUES (?)", [str(placed.order_id)])
        return result(placed)

    handler: Any = writing if kind == "in a transaction" else orders
    service.on(Placed, name="orders", idempotent=kind != "plain")(handler)
    return service


async def consumed(url: str, name: str, kind: str, total: int, path: Path) -> dict[str, float]:
    """Return the rate and the CPU of a queue that is full at the start."""
    settings, stop = Settings(url=url), asyncio.Event()
    store = SqliteStore(path, schema=SCHEMA)
    async with client.transport(settings) as transport:
        bus = Bus(transport, settings, "/bench")
        for known in [False, True] if kind == "duplicates" else [False]:
            watch, stop = Stopwatch(total), asyncio.Event()
            service = service_of(kind, name, store, watch)
            events = discovery.named([service])
            await transport.declare([handler.subscription(events) for handler in service.handlers])

            async def publish(number: int) -> None:
                await bus.publish(Placed.model_validate(order(number)), id=f"{name} {number}")

            await in_window(total, publish)
            worker = Worker(transport, [service], app="bench", events=events, settings=settings, log=logging())
            started, cpu = time.perf_counter(), time.process_time()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run(stop))
                counts = worker.flows[f"{name}.orders"].counts
                while known and counts["completed before"] < total:
                    await asyncio.sleep(0.01)
                if not known:
                    await watch.done.wait()
                taken, used = time.perf_counter() - started, time.process_time() - cpu
                stop.set()
            if known:
                return {"rate": total / taken, "cpu": used / total * 1e6}
    return watch.result()


def measure(what: str, url: str) -> None:
    """Measure every kind in turn, and print medians."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(ROUNDS):
        for kind, total in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                name = f"bench{number}{kind.replace(' ', '_')}"
                found[kind].append(asyncio.run(consumed(url, name, kind, total, Path(folder, "store.db"))))
    for kind, rounds in found.items():
        rate, cpu = (statistics.median(one[of] for one in rounds) for of in ("rate", "cpu"))
        print(f"{what:9} {kind:18} {rate:9,.0f}/s  {1e6 / rate:8,.0f} µs  CPU {cpu:7.1f} µs a delivery", flush=True)


def synced() -> float:
    """Return the milliseconds that the commit of one row takes on this disk, in SQLite alone."""
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "a.db"), isolation_level=None)
        connection.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {sqlite.TABLE}")
        started = time.perf_counter()
        for number in range(100):
            connection.execute(sqlite.RECORD, (str(number), 0.0, 0.0))
        connection.close()
    return (time.perf_counter() - started) * 10


def main() -> None:
    """Measure both transports."""
    from tests.broker.node import Node

    configure("warning", "json")
    print(f"one row, committed and synced by SQLite alone: {synced():.2f} ms", flush=True)
    if sys.argv[1:] != ["rabbitmq"]:
        measure("memory", "memory://")
    if sys.argv[1:] == ["memory"]:
        return
    node = Node()
    try:
        node.start()
        measure("RabbitMQ", node.url())
    finally:
        node.close()


if __name__ == "__main__":
    main()
