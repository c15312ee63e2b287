"""What is done to the cluster, and to whom."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from tests.broker.cluster import Cluster
from tests.broker.node import Node

from .operating import Operator


Fault: TypeAlias = Callable[["Stage"], Awaitable[str]]
"""Does it, and undoes it; returns what there is to tell."""
CUT_FOR: Final = 20.0
FROZEN_FOR: Final = 20.0


class Stage:
    """The cluster, and the operator that acts on its letters."""

    def __init__(self, cluster: Cluster, operator: Operator) -> None:
        self.cluster = cluster
        self.operator = operator

    def living(self) -> Node:
        """Return a node that serves."""
        return next(node for node in self.cluster.nodes if node.pid() is not None)

    def name(self, node: Node) -> str:
        """Return what the report calls a node."""
        return f"node {self.cluster.nodes.index(node) + 1}"

    def connections(self) -> Counter[Node]:
        """Return how many connections each node has."""
        return self.cluster.connections(self.living())

    def spread(self) -> str:
        """Return how leaders and connections are spread over the nodes."""
        leaders, connections = self.cluster.leaders(self.living()), self.connections()
        busy = Counter(leaders[f"yard.{handler}"] for handler in ("at_once", "in_order", "retried", "given_up"))
        each = [(Counter(leaders.values())[node], busy[node], connections[node]) for node in self.cluster.nodes]
        return "leaders {}/{}/{}, of handlers' queues {}/{}/{}, connections {}/{}/{}".format(
            *(count for row in zip(*each, strict=True) for count in row)
        )


async def nothing(stage: Stage) -> str:
    """Leave it alone for a while."""
    await asyncio.sleep(10)
    return await asyncio.to_thread(stage.spread)


async def leader_killed(stage: Stage) -> str:
    """Kill the node that leads an ordered handler's queue, and start it again."""
    return await _killed_and_started(stage, "yard.in_order")


async def letters_leader_killed(stage: Stage) -> str:
    """Kill the node that leads the dead letters, which are written, listed and replayed meanwhile."""
    async with stage.operator.acting() as told:
        await asyncio.sleep(3)
        where = await _killed_and_started(stage, "yard.dead")
        await asyncio.sleep(3)
    return f"{where}; {told}"


async def _killed_and_started(stage: Stage, queue: str) -> str:
    node = await asyncio.to_thread(lambda: stage.cluster.leader(queue, stage.living()))
    connected = (await asyncio.to_thread(stage.connections))[node]
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(15)
    await asyncio.to_thread(node.start)
    return f"{stage.name(node)} led {queue} and had {connected} connections"


async def cut_off(stage: Stage) -> str:
    """Cut the node off that most are connected to."""
    (node, connected), *_ = (await asyncio.to_thread(stage.connections)).most_common()
    await asyncio.to_thread(stage.cluster.cut_off, node)
    await asyncio.sleep(CUT_FOR)
    others = [each for each in stage.cluster.nodes if each is not node]
    serves = await asyncio.to_thread(node.ctl, "eval", "rabbit:is_running().")
    await asyncio.to_thread(stage.cluster.heal, node)
    await asyncio.to_thread(others[0].ctl, "await_online_nodes", "3")
    return f"{stage.name(node)} had {connected} connections, and {'went on' if 'true' in serves else 'paused'}"


async def frozen(stage: Stage) -> str:
    """Stop the process of the node that most are connected to, without ending it."""
    (node, connected), *_ = (await asyncio.to_thread(stage.connections)).most_common()
    node.freeze()
    await asyncio.sleep(FROZEN_FOR)
    node.thaw()
    return f"{stage.name(node)} had {connected} connections"


async def rolled(stage: Stage) -> str:
    """Restart one node after the other, each drained before and revived after."""
    for node in stage.cluster.nodes:
        await asyncio.to_thread(_restarted, stage.cluster, node)
    before = await asyncio.to_thread(stage.spread)
    await asyncio.to_thread(node.run, "rabbitmq-queues", "rebalance", "quorum")
    return f"{before}; rebalanced: {await asyncio.to_thread(stage.spread)}"


def _restarted(cluster: Cluster, node: Node) -> None:
    node.run("rabbitmq-upgrade", "await_online_quorum_plus_one", "--timeout", "60")
    cluster.drain(node)
    node.stop()
    node.start()
    cluster.revive(node)


async def all_stopped(stage: Stage) -> str:
    """Stop the whole cluster as an operator does, and start it again."""
    return await _all(stage, Node.stop)


async def all_killed(stage: Stage) -> str:
    """Kill the whole cluster, as a power cut does, and start it again."""
    return await _all(stage, Node.kill)


async def _all(stage: Stage, end: Callable[[Node], None]) -> str:
    await asyncio.to_thread(stage.cluster.each, end)
    began = time.monotonic()
    await asyncio.to_thread(stage.cluster.each, Node.start)
    return f"{time.monotonic() - began:.0f} s until it served"


FAULTS: Final[dict[str, Fault]] = {
    "none": nothing,
    "leader of a queue killed": leader_killed,
    "node cut off": cut_off,
    "node frozen": frozen,
    "rolling restart": rolled,
    "leader of the dead letters killed": letters_leader_killed,
    "all nodes stopped, started": all_stopped,
    "all nodes killed, started": all_killed,
}
