"""How each fault begins and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from benchmarks.recovery import CHANNELS
from tests.broker.proxy import Proxy
from tests.contract.outages import CANCEL, alarm, heal, refuse, swallow_all, swallow_down, swallow_up

from .events import DELETABLE
from .faults import Planned
from .world import World, blocking


CUTS: Final[dict[str, Callable[[Proxy], None]]] = {
    "connections reset": Proxy.drop,
    "connections refused": refuse,
    "link swallows what goes up": swallow_up,
    "link swallows what comes down": swallow_down,
    "link swallows all": swallow_all,
    "connections forgotten": Proxy.forget,
}


@asynccontextmanager
async def injected(world: World, fault: Planned) -> AsyncIterator[None]:
    """Inject a fault meanwhile; it has been healed when the context is left."""
    node = world.nodes[fault.pick % len(world.nodes)]
    worker = world.workers[fault.pick % len(world.workers)]
    match fault.kind:
        case "worker killed":
            worker.kill()
            yield
        case "worker stopped":
            await worker.stop()
            yield
        case "memory alarm":
            async with alarm(node):
                yield
        case "queue deleted":
            await blocking(node.ctl, "delete_queue", queue(fault))
            yield
        case "consumers cancelled":
            await blocking(node.ctl, "eval", CANCEL.format(vhost="/", queue=queue(fault)))
            yield
        case "channels dead":
            await blocking(node.ctl, "eval", CHANNELS)
            yield
        case kind if kind in CUTS:
            for link in _links(world, fault.pick):
                CUTS[kind](link)
            yield
            for link in _links(world, fault.pick):
                heal(link)
        case kind:
            if kind == "leader killed" and world.cluster is not None:
                node = await blocking(world.cluster.leader, queue(fault), node)
            if node.pid() is None:
                raise RuntimeError(f"{node.erlang_name} does not run, so that nothing can be done to it")
            await blocking(node.stop if kind.endswith("restarted") else node.kill)
            yield
            await blocking(node.start)


def queue(fault: Planned) -> str:
    """Return the queue that a fault picks."""
    return DELETABLE[fault.pick % len(DELETABLE)]


def _links(world: World, pick: int) -> list[Proxy]:
    """Return the links of one process, or of all."""
    chosen = pick % (2 * len(world.links))
    return [link for links in (world.links[chosen : chosen + 1] or world.links) for link in links]
