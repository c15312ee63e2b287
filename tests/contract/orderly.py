"""Order under stops, kills and closes, with replicas in processes of their own.

    python -m tests.contract.orderly [EACH [STOPS [KILLS [CLOSES]]]]      the proof at full size, on a private broker
    python -m tests.contract.orderly replica FILE                         what hosts one life of a worker after another

Whatever succeeds is appended to one file by all replicas, in the order in which it happens.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bus import Service, client, discovery, fixed
from bus import settings as environment
from bus.logs import configure
from bus.middleware.logging import logging
from bus.worker import Worker
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .stage import Event, Stage, staged


REPLICAS = 3
KEYS = tuple("abcdefghijklmnop")
FAILING = "a"
AHEAD = 4
"""Parts of the load that are published before the disturbance that they are for."""


class Moved(Event, type="parcel.moved"):
    parcel: str
    number: int


def yard(file: int) -> Service:
    """Return a service whose handler is ordered, writes down what it did, and fails half the time for one key."""
    service = Service("yard", concurrency=16)

    @service.on(Moved, ordered_by="parcel", retry=fixed(1_000, 0.05))
    async def work(moved: Moved) -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        if moved.parcel == FAILING and random.random() < 0.5:
            os.write(file, f"fail {moved.parcel} {moved.number}\n".encode())
            raise ConnectionError("half the time")
        os.write(file, f"done {moved.parcel} {moved.number}\n".encode())

    return service


async def live(file: int) -> None:
    """Be a worker until SIGTERM; say so once it consumes."""
    settings = environment.read()
    configure(settings.log_level, "json")
    stop, service = asyncio.Event(), yard(file)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with client.transport(settings) as transport:
        worker = Worker(
            transport, [service], app="y", events=discovery.named([service]), settings=settings, log=logging()
        )
        await worker.run(stop, lambda: print("up", flush=True))


def replica(path: str) -> None:
    """Fork one life after the other, so that imports are paid for once; each ends by the signal read from stdin."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    while True:
        child = os.fork()
        if not child:
            asyncio.run(live(file))
            os._exit(0)
        told = sys.stdin.readline().split() or ["SIGKILL", "last"]  # whoever started it is gone
        os.kill(child, signal.Signals[told[0]])
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
        if told[1:] == ["last"]:
            return


class Replica:
    """One place for workers; its connections go through a proxy of its own."""

    def __init__(self, process: asyncio.subprocess.Process, proxy: Proxy) -> None:
        self._process = process
        self.proxy = proxy

    async def says(self) -> str:
        """Return the next line that it says."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            return (await self._process.stdout.readline()).decode().strip()

    async def end(self, by: str, *, last: bool = False) -> None:
        """End the life by a signal; unless it was the last, the next one is up in the end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{by} {'last' if last else ''}\n".encode())
        expected = "ended 0" if by == "SIGTERM" else f"ended {-signal.Signals[by]}"
        assert (told := await self.says()) == expected, told
        if last:
            await self._process.wait()
        else:
            assert await self.says() == "up"

    @classmethod
    @asynccontextmanager
    async def running(cls, url: str, port: int, path: Path) -> AsyncIterator[Replica]:
        """Start a replica; in the end whatever still runs of it is killed."""
        async with Proxy(port).running() as proxy:
            through = url.replace(f":{port}/", f":{proxy.port}/")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.contract.orderly", "replica", str(path)),
                env=os.environ | {"BUS_URL": through, "BUS_LOG_LEVEL": "error"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            try:
                started = cls(process, proxy)
                assert await started.says() == "up"
                yield started
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()


@dataclass
class Proof:
    """What came of it."""

    each: int
    first: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    runs: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def out_of_order(self) -> list[str]:
        """The keys whose first successes are not in order."""
        return [key for key, numbers in self.first.items() if numbers != sorted(numbers)]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """What never succeeded."""
        return [(key, n) for key in KEYS for n in sorted(set(range(self.each)) - set(self.first[key]))]

    @property
    def repeated(self) -> int:
        """Successes beyond the first."""
        return self.runs["done"] - sum(map(len, self.first.values()))

    def read(self, path: Path) -> bool:
        """Read the file; tell whether everything has succeeded."""
        self.first.clear()
        self.runs.clear()
        seen = set()
        for line in path.read_text().splitlines():
            what, key, number = line.split()
            self.runs[what] += 1
            if what == "done" and (key, number) not in seen:
                seen.add((key, number))
                self.first[key].append(int(number))
        return len(seen) == self.each * len(KEYS)


async def prove(stage: Stage, port: int, each: int, stops: int, kills: int, closes: int) -> Proof:
    """Publish `each` events of every key while replicas are stopped, killed and cut off in random order."""
    disturbances = ["SIGTERM"] * stops + ["SIGKILL"] * kills + ["close"] * closes
    random.shuffle(disturbances)
    proof, began = Proof(each), time.monotonic()
    await stage.declare(yard(-1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "successes")
        path.touch()
        async with AsyncExitStack() as stack, asyncio.timeout(60 + 3 * len(disturbances) + each / 5):
            replicas = [
                await stack.enter_async_context(Replica.running(stage.settings.url, port, path))
                for _ in range(REPLICAS)
            ]
            async with asyncio.TaskGroup() as tasks:
                ahead = asyncio.Semaphore(AHEAD)
                tasks.create_task(publish(stage, each, len(disturbances), ahead))
                for disturbance in disturbances:
                    await asyncio.sleep(random.uniform(0, 0.1))
                    await disturb(random.choice(replicas), disturbance)
                    ahead.release()
            while not proof.read(path):
                await asyncio.sleep(0.2)
            for each_replica in replicas:
                await each_replica.end("SIGTERM", last=True)
            proof.read(path)
    proof.seconds = time.monotonic() - began
    return proof


async def publish(stage: Stage, each: int, parts: int, ahead: asyncio.Semaphore) -> None:
    """Publish in order and in parts, one for each disturbance."""
    moves = [Moved(parcel=key, number=number) for number in range(each) for key in KEYS]
    size = -(-len(moves) // parts)
    for start in range(0, len(moves), size):
        await ahead.acquire()
        part = moves[start : start + size]
        for few in range(0, len(part), 7):
            await stage.bus.publish(*part[few : few + 7])


async def disturb(one: Replica, how: str) -> None:
    if how == "close":
        one.proxy.drop()
    else:
        await one.end(how)


async def main(each: int = 1_000, stops: int = 100, kills: int = 20, closes: int = 20) -> int:
    """Run the proof on a broker of its own, and print what came of it."""
    node = await asyncio.to_thread(Node)
    try:
        await asyncio.to_thread(node.start)
        async with staged("rabbitmq", node.url()) as stage:
            proof = await prove(stage, node.port, each, stops, kills, closes)
            letters = await stage.letters("yard", 0)
    finally:
        await asyncio.to_thread(node.close)
    print(
        f"{len(KEYS)} keys × {each} events, {REPLICAS} replicas, {stops} stops, {kills} kills, {closes} closes: "
        f"{proof.seconds:.0f} s, {proof.runs['fail']} failed runs, {proof.repeated} repeated; "
        f"out of order: {proof.out_of_order}, missing: {proof.missing}, dead letters: {len(letters)}"
    )
    return 1 if proof.out_of_order or proof.missing or letters else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["replica"]:
        replica(sys.argv[2])
    else:
        sys.exit(asyncio.run(main(*map(int, sys.argv[1:]))))
