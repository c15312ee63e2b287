"""How soon a worker and a waiting publish are back after each kind of outage: `python -m benchmarks.recovery`.

On a private broker, behind a proxy, and on a private cluster of three nodes. An outage begins, a publish waits, the
outage ends; the seconds are taken from its end until the publish has returned and until a message was handled. Of what
needs no end they count from its beginning. Less than nothing means before the command had returned that ended it.
Nothing here is a test: machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from bus import Bus, Event, Service, Settings, client, discovery
from bus.worker import Worker
from tests.broker.cluster import Cluster
from tests.broker.node import Node
from tests.broker.proxy import Proxy


WITHIN = 120.0
OLD_ENOUGH = 1.5
"""Seconds before a kill: a quorum queue that is younger does not survive it."""
CHANNELS = "[rabbit_channel:shutdown(P) || P <- rabbit_channel:list_local()]."

Step: TypeAlias = Callable[[], object]
"""Begins or ends an outage; it may block, and is called in a thread where it is a node's."""


class Ping(Event, type="recovery.ping"):
    """What is published and handled."""


def outages(node: Node, proxy: Proxy) -> dict[str, tuple[Step, float, Step]]:
    """Return what begins each outage, how long it lasts, and what ends it."""

    def heal() -> None:
        proxy.refuse(False)
        proxy.blackhole(up=False, down=False)

    def refuse() -> None:
        proxy.refuse(True)
        proxy.drop()

    def nothing() -> None:
        pass

    return {
        "connections reset": (proxy.drop, 0, nothing),
        "connections closed by an operator": (lambda: node.ctl("close_all_connections", "bye"), 0, nothing),
        "refused for 10 s": (refuse, 10, heal),
        "swallowed upstream for 3 s": (lambda: proxy.blackhole(up=True, down=False), 3, heal),
        "swallowed downstream for 3 s": (lambda: proxy.blackhole(up=False, down=True), 3, heal),
        "connections forgotten by a firewall": (proxy.forget, 0, nothing),
        "channels dead without a word": (lambda: node.ctl("eval", CHANNELS), 0, nothing),
        "queue deleted": (lambda: node.ctl("delete_queue", "recovery.handle"), 0, nothing),
        "memory alarm for 3 s": (
            lambda: node.ctl("set_vm_memory_high_watermark", "0.000001"),
            3,
            lambda: node.ctl("set_vm_memory_high_watermark", "0.4"),
        ),
        "broker restarted (stop_app, start_app)": (
            lambda: node.ctl("stop_app"),
            0,
            lambda: node.ctl("start_app"),
        ),
        "broker killed, started again": (node.kill, 0, node.start),
    }


@asynccontextmanager
async def working(url: str) -> AsyncIterator[tuple[Bus, asyncio.Event]]:
    """Run a worker and a bus; the event is set when something was handled."""
    handled = asyncio.Event()
    service = Service("recovery")

    @service.on(Ping)
    async def handle(_: Ping) -> None:
        handled.set()

    settings, stop = Settings(url=url, publish_timeout=WITHIN), asyncio.Event()
    async with client.transport(settings) as transport, asyncio.TaskGroup() as tasks:
        events = discovery.named([service])
        worker = Worker(transport, [service], app="b", events=events, settings=settings, log=lambda _, process: process)
        tasks.create_task(worker.run(stop))
        yield Bus(transport, settings, "/benchmark"), handled
        stop.set()


async def measured(url: str, begin: Step, lasting: float, end: Step) -> tuple[float, float]:
    """Make one outage; return the seconds from its end to the return of a publish, and to a message handled."""
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(WITHIN), working(url) as (bus, handled), asyncio.TaskGroup() as tasks:
        await asyncio.sleep(OLD_ENOUGH)
        await until_handled(bus, handled)
        await called(begin)
        handled.clear()
        publishing = tasks.create_task(stored(bus))
        await asyncio.sleep(lasting)
        await called(end)
        ended = clock()
        returned = await publishing
        await until_handled(bus, handled)
        return returned - ended, clock() - ended


async def stored(bus: Bus) -> float:
    """Publish, and return when that has returned."""
    await bus.publish(Ping())
    return asyncio.get_running_loop().time()


async def until_handled(bus: Bus, handled: asyncio.Event) -> None:
    """Publish until something is handled: an event for a queue that was deleted is nobody's."""
    while not handled.is_set():
        try:
            async with asyncio.timeout(0.05):
                await handled.wait()
        except TimeoutError:
            await bus.publish(Ping())


async def called(step: Step) -> None:
    """Call what may block in a thread, but what belongs to the loop in the loop."""
    owner = getattr(step, "__self__", None)
    if isinstance(owner, Proxy) or "proxy" in step.__code__.co_freevars:  # type: ignore[attr-defined]
        step()
    else:
        await asyncio.to_thread(step)


async def one_broker(rounds: int, report: Callable[[str, list[tuple[float, float]]], None]) -> None:
    """Measure the outages of one broker."""
    node = Node()
    try:
        await asyncio.to_thread(node.start)
        async with Proxy(node.port).running() as proxy:
            for name, steps in outages(node, proxy).items():
                report(name, [await measured(proxy.url(""), *steps) for _ in range(rounds)])
    finally:
        node.close()


async def a_cluster(rounds: int, report: Callable[[str, list[tuple[float, float]]], None]) -> None:
    """Measure what the kill of a node costs: of the one that a worker is connected to, and of the queue's leader."""
    cluster = Cluster()
    try:
        await asyncio.to_thread(cluster.start)
        for name, leads in (
            ("node killed: connected to it, it leads", True),
            ("node killed: connected to it, another leads", False),
        ):
            taken = []
            for _ in range(rounds):
                taken.append(await measured(cluster.url(), lambda leads=leads: kill(cluster, leads), 0, lambda: None))
                await asyncio.to_thread(cluster.start)
            report(name, taken)
    finally:
        cluster.close()


def kill(cluster: Cluster, leads: bool) -> None:
    """Kill the node that most are connected to, which leads the queue or does not."""
    asked = cluster.nodes[0]
    (node, _), *_ = cluster.connections(asked).most_common()
    leader = node if leads else next(other for other in cluster.nodes if other is not node)
    cluster.lead("recovery.handle", leader, asked)
    node.kill()


def main() -> None:
    """Measure every outage so often, and print medians and the longest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    for name in ("tidegate", "aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report(name: str, taken: list[tuple[float, float]]) -> None:
        columns = [f"{statistics.median(some):7.2f} {max(some):7.2f}" for some in zip(*taken, strict=True)]
        print(f"{name:45} {'   '.join(columns)}", flush=True)

    print(f"{'seconds, median and longest':45} {'publish returns':>15}   {'handles again':>15}")
    asyncio.run(one_broker(rounds, report))
    asyncio.run(a_cluster(rounds, report))


if __name__ == "__main__":
    main()
