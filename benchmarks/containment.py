"""Two healthy services beside a sick one, fault by fault: `python -m benchmarks.containment`, on a private broker.

    .venv-bench/bin/python -m benchmarks.containment                       (a round of every fault, both contenders)
    .venv-bench/bin/python -m benchmarks.containment --only flood --rounds 3
    .venv-bench/bin/python -m benchmarks.containment --draw FILE           (table and picture, of what --json FILE kept)

The healthy services get 150 events a second each, at a steady rate; the sick one gets 100. Each run is a window without
the fault and one with it, in the same worker: what is told is the second against the first. This process publishes,
and reads afterwards what the worker's processes wrote down. Nothing here is a test: machines are noisy, and the row
without any fault tells how much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.contained.services import First, Second, Unheard, Work
from benchmarks.figures import Run, rows, run_of, table, window
from benchmarks.picture import picture
from benchmarks.sick import LOG, RESOURCE, SERVICES, read
from benchmarks.supervised import supervised
from bus import Bus, Event, Service, Settings, connect
from bus.event import Events
from bus.message import Outgoing
from tests.broker.node import Node


HEALTHY = {"first": First, "second": Second}
RATE, SICK_RATE = 150, 100
"""Events a second for each healthy service, and for the sick one."""
FLOOD, FLOOD_RATE = 100_000, 10_000
WARM_UP, BEFORE, DURING, AFTER = 1.5, 7.0, 10.0, 2.0
"""Seconds: thrown away; without the fault; with it; and until what still waits counts as waiting."""
READY_WITHIN = 20.0
CONTENDERS = ("Tidegate", "FastStream")
DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row: what it is called, what the sick service's events say, and how many of them say it."""

    title: str
    says: str = ""
    every: int = 1
    isolated: bool = False
    broken_at_start: bool = False
    flooded: type[Work | Unheard] | None = None


FAULTS = {
    "none": Fault("no fault (the noise)"),
    "raises": Fault("always raises", "raises"),
    "hangs": Fault("hangs for ever", "hangs"),
    "slow": Fault("100 times slower", "slow"),
    "flood": Fault("100,000 messages flood its queue", flooded=Work),
    "flood-unheard": Fault("100,000 messages that nobody handles (the broker's part)", flooded=Unheard),
    "poison": Fault("poison bytes", "poison"),
    "storm": Fault("event storm", "storm"),
    "unavailable": Fault("its resource is gone", "unavailable"),
    "unavailable-at-start": Fault("its resource is gone at the start", broken_at_start=True),
    "blocks": Fault("blocks the loop for 2 s", "blocks", 4 * SICK_RATE),
    "leaks": Fault("leaks until the process dies", "leaks"),
    "segfault": Fault("segfault", "segfault", SICK_RATE),
    "none-isolated": Fault("no fault, isolated (the noise)", isolated=True),
    "storm-isolated": Fault("event storm, isolated", "storm", isolated=True),
    "blocks-isolated": Fault("blocks the loop for 2 s, isolated", "blocks", 4 * SICK_RATE, isolated=True),
    "leaks-isolated": Fault("leaks until the process dies, isolated", "leaks", isolated=True),
    "segfault-isolated": Fault("segfault, isolated", "segfault", SICK_RATE, isolated=True),
}


@dataclass(slots=True)
class Traffic:
    """Publishes at steady rates, and remembers when."""

    bus: Bus
    sent: dict[str, list[float]] = field(default_factory=lambda: {service: [] for service in SERVICES})
    fault: Fault = FAULTS["none"]

    async def steadily(self, rate: float, event: Callable[[], Event | Outgoing]) -> None:
        """Publish so many events a second, whatever becomes of the last one; ends by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            due = time.monotonic()
            while True:
                due += 1 / rate
                await asyncio.sleep(max(0, due - time.monotonic()))
                tasks.create_task(self.publish(event()))

    async def publish(self, event: Event | Outgoing) -> None:
        """Publish an event, or what is none."""
        if isinstance(event, Event):
            await self.bus.publish(event)
        else:
            await self.bus._transport.publish([event])

    def healthy(self, service: str) -> Event:
        """Return the next event of a healthy service."""
        return HEALTHY[service](at=self._now(service))

    def sick(self) -> Event | Outgoing:
        """Return the next event of the sick service: of the fault, if it is its turn."""
        at, fault = self._now("sick"), self.fault
        ill = bool(fault.says) and len(self.sent["sick"]) % fault.every == 0
        event = Work(at=at, fault=fault.says if ill else "")
        if ill and fault.says == "poison":
            return Outgoing(replace(self.bus.message(event), body=b"\xff\x00\xfepoison"))
        return event

    def _now(self, service: str) -> float:
        self.sent[service].append(time.monotonic())
        return self.sent[service][-1]


def command(contender: str, service: str | None, *, isolated: bool) -> list[str]:
    """Return the command of a worker: of all services, or of one."""
    if contender == "FastStream":
        return [sys.executable, "-m", "benchmarks.peers.faststream_contained", *([service] if service else [])]
    return [sys.executable, "-m", "benchmarks.contained_app", "run", *(["--isolate"] if isolated else [])]


@asynccontextmanager
async def working(contender: str, fault: Fault, url: str, folder: str, *, broken: bool) -> AsyncIterator[None]:
    """Run a contender's worker, or its workers, under a supervisor."""
    # FastStream has no supervisor of its own that gives each subscriber a process: three apps stand for it
    alone = fault.isolated and contender == "FastStream"
    with socket.create_server(("127.0.0.1", 0), backlog=100) as there:
        environment = {
            **os.environ,
            "BUS_URL": url,
            "BUS_LOG_LEVEL": "warning",
            "BUS_GRACE": "1",
            LOG: folder,
            RESOURCE: "1" if broken else str(there.getsockname()[1]),
        }
        async with AsyncExitStack() as stack:
            for service in SERVICES if alone else (None,):
                arguments = command(contender, service, isolated=fault.isolated)
                await stack.enter_async_context(supervised(arguments, environment, Path(folder, "log")))
            yield


async def until_working(traffic: Traffic, folder: str, services: tuple[str, ...]) -> None:
    """Publish to the services until each has handled something, or until that is hopeless."""
    began = time.monotonic()
    while time.monotonic() < began + READY_WITHIN:
        for service in services:
            await traffic.publish(traffic.healthy(service) if service in HEALTHY else traffic.sick())
        await asyncio.sleep(0.2)
        if all(any(at > began for at in read(folder, service)) for service in services):
            return


@asynccontextmanager
async def flooding(event: type[Work | Unheard], url: str) -> AsyncIterator[None]:
    """Flood a queue meanwhile, from a process that yields to the others: it would be elsewhere."""
    arguments = [sys.executable, "-m", "benchmarks.containment", "--flood", event.__name__, url]
    flooder = await asyncio.create_subprocess_exec("nice", *arguments)
    try:
        yield
    finally:
        if flooder.returncode is None:
            flooder.kill()
        await flooder.wait()


async def flood(event: type[Work | Unheard], url: str) -> None:
    """Publish the flood."""
    nobody = Service("nobody")
    nobody.on(Unheard)(ignore)
    async with connect(url) as bus:
        if event is Unheard:
            await bus._transport.declare([handler.subscription(Events()) for handler in nobody.handlers])
        began, size = time.monotonic(), 100
        for sent in range(0, FLOOD, size):
            await bus.publish(*(event(at=float(number)) for number in range(sent, sent + size)))
            await asyncio.sleep(max(0, began + sent / FLOOD_RATE - time.monotonic()))


async def ignore(event: Unheard) -> None:
    """Subscribe: nobody runs it."""


async def run(name: str, contender: str, url: str) -> Run:
    """Run one fault once: a window without it, and one with it."""
    fault, windows = FAULTS[name], []
    with tempfile.TemporaryDirectory(prefix="tidegate-containment-") as folder:
        async with AsyncExitStack() as stack:
            traffic = Traffic(await stack.enter_async_context(connect(settings=Settings(url=url))))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            async with working(contender, fault, url, folder, broken=False):
                await until_working(traffic, folder, SERVICES)
                steady = [
                    tasks.create_task(traffic.steadily(RATE, lambda service=service: traffic.healthy(service)))  # type: ignore[misc]
                    for service in HEALTHY
                ]
                steady.append(tasks.create_task(traffic.steadily(SICK_RATE, traffic.sick)))
                await asyncio.sleep(WARM_UP)
                windows.append(await lasting(BEFORE))
                if not fault.broken_at_start:
                    windows.append(await ill(traffic, fault, url))
                await asyncio.sleep(AFTER)
            if fault.broken_at_start:
                async with working(contender, fault, url, folder, broken=True):
                    await until_working(traffic, folder, tuple(HEALTHY))
                    await asyncio.sleep(WARM_UP)
                    windows.append(await ill(traffic, fault, url))
                    await asyncio.sleep(AFTER)
            for task in steady:
                task.cancel()
        seen_until = time.monotonic()
        services = [(traffic.sent[service], read(folder, service)) for service in HEALTHY]
        before, during = (window(services, begin, end, seen_until) for begin, end in windows)
        return Run(name, contender, before, during)


async def lasting(seconds: float) -> tuple[float, float]:
    """Wait, and return from when to when."""
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return began, time.monotonic()


async def ill(traffic: Traffic, fault: Fault, url: str) -> tuple[float, float]:
    """Let the fault happen for as long as its window."""
    async with AsyncExitStack() as stack:
        if fault.flooded is not None:
            await stack.enter_async_context(flooding(fault.flooded, url))
        traffic.fault = fault
        return await lasting(DURING)


def measure(node: Node, chosen: list[str], contenders: list[str], rounds: int, keep: Path | None) -> list[Run]:
    """Run the chosen faults so often, and keep what came of it."""
    runs: list[Run] = []
    for number in range(rounds):
        for name in chosen:
            for contender in contenders:
                vhost = f"{contender}-{name}-{number}"
                node.add_vhosts([vhost])
                runs.append(asyncio.run(run(name, contender, node.url(vhost))))
                node.ctl("delete_vhost", vhost)
                one = runs[-1]
                told = f"{one.throughput:7.1%}  p99 × {one.p99:8.2f}  {one.before.p99:8.2f} → {one.during.p99:.2f} ms"
                print(f"round {number + 1}: {contender:10} {name:22} {told}", flush=True)
                if keep is not None:
                    keep.write_text(json.dumps([each.as_json() for each in runs], indent=1) + "\n")
    return runs


def show(runs: list[Run], docs: Path | None) -> None:
    """Print the table; put it into the docs, with the picture."""
    found, titles = rows(runs), {name: fault.title for name, fault in FAULTS.items()}
    told = table(found, titles, CONTENDERS)
    print(f"\n{told}")
    if docs is not None:
        page, head = docs / "containment.md", re.escape(told.partition(":")[0])
        page.write_text(re.sub(rf"^{head}.*?(?=\n\n)", told, page.read_text(), flags=re.MULTILINE | re.DOTALL))
        (docs / "containment.svg").write_text(picture(found, titles, CONTENDERS))


def main() -> None:
    """Measure, or show what was measured, or be the flood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, nargs="+", default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--contender", choices=CONTENDERS, nargs="+", default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="show these figures, and put table and picture into docs/"
    )
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.flood:
        kind, url = chosen.flood
        asyncio.run(flood({each.__name__: each for each in (Work, Unheard)}[kind], url))
        return
    if chosen.draw:
        show([run_of(each) for each in json.loads(chosen.draw.read_text())], DOCS)
        return
    node = Node()
    try:
        node.start()
        show(measure(node, chosen.only, chosen.contender, chosen.rounds, chosen.json), None)
    finally:
        node.close()


if __name__ == "__main__":
    main()
