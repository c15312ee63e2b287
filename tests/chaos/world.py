"""What is under attack: nodes, links, and processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bus import Settings, client
from tests.broker.cluster import Cluster
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .app import app
from .ledger import Ledger
from .processes import Process


T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Each process has links of its own, one to each node; they can be cut alone."""

    nodes: tuple[Node, ...]
    cluster: Cluster | None
    links: tuple[tuple[Proxy, ...], ...]
    workers: tuple[Process, ...]
    publishers: tuple[Process, ...]
    ledger: Ledger

    @property
    def url(self) -> str:
        """The URL of those who look and are not attacked."""
        return self.cluster.url() if self.cluster is not None else self.nodes[0].url()


@asynccontextmanager
async def opened(folder: Path, *, cluster: bool, workers: int, publishers: int) -> AsyncIterator[World]:
    """Start a broker, or a cluster of three, and everybody else; end them all in the end."""
    three = Cluster() if cluster else None
    nodes = three.nodes if three is not None else (Node(),)
    ledger = Ledger(folder / "chaos.ledger")
    async with AsyncExitStack() as stack:
        stack.callback(ledger.close)
        for node in nodes:
            stack.push_async_callback(blocking, node.close)
        await blocking((three or nodes[0]).start)
        names = [f"worker{n}" for n in range(workers)] + [f"publisher{n}" for n in range(publishers)]
        links = [tuple([await stack.enter_async_context(Proxy(node.port).running()) for node in nodes]) for _ in names]
        await declare(nodes[0].url())
        processes = [_process(name, folder, ledger, link) for name, link in zip(names, links, strict=True)]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(process.run()) for process in processes]
            try:
                yield World(nodes, three, tuple(links), tuple(processes[:workers]), tuple(processes[workers:]), ledger)
            finally:
                for task in running:
                    task.cancel()


async def declare(url: str) -> None:
    """Have every queue before anybody publishes: an event that nobody subscribes to is nobody's."""
    async with client.transport(Settings(url=url)) as transport:
        handlers = [handler for service in app.services for handler in service.handlers]
        await transport.declare([handler.subscription(app.events) for handler in handlers])


def _process(name: str, folder: Path, ledger: Ledger, links: tuple[Proxy, ...]) -> Process:
    url = f"amqp://guest:guest@{','.join(f'127.0.0.1:{link.port}' for link in links)}/"
    if name.startswith("worker"):
        return Process(name, "tests.chaos.app", "run", folder=folder, ledger=ledger, url=url)
    return Process(name, "tests.chaos.publisher", name, folder=folder, ledger=ledger, url=url)


async def blocking(call: Callable[..., T], *arguments: object) -> T:
    """Call what blocks in a thread, and see it to its end even if this is cancelled: half a start cannot be undone."""
    thread = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise
