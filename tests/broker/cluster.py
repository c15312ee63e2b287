"""Three private nodes that are one cluster, by deploy/cluster.conf; each may be killed, cut off, and started again."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from .install import NoBroker
from .node import Node


DRAINS: Final = 3
"""How often a drain that fails is tried."""
CUTS: Final = 3
"""How often a node is cut off until the others go on."""
DEPLOY: Final = Path(__file__).parents[2] / "deploy"
NODES: Final = ("rabbit@rabbitmq", "rabbit@rabbitmq2", "rabbit@rabbitmq3")
"""The names that the nodes have in deploy/cluster.conf."""


class Cluster:
    """A cluster of the tests' own. Its nodes share an Erlang name server, so they are processes and no containers."""

    def __init__(self) -> None:
        first = Node()
        self.nodes = (first, Node(beside=first), Node(beside=first))
        settings = (DEPLOY / "cluster.conf").read_text()
        for name, node in zip(NODES, self.nodes, strict=True):
            settings = settings.replace(f"= {name}\n", f"= {node.erlang_name}\n")
        for node in self.nodes:
            with (node.folder / "rabbitmq.conf").open("a") as file:
                file.write(settings)
            shutil.copy(DEPLOY / "advanced.config", node.folder)

    def start(self) -> None:
        """Start the nodes that do not run; they find and join one another."""
        first = self.nodes[0]
        if first.programs.image:
            raise NoBroker("three nodes need rabbitmq-server itself: install that package; Docker is not enough")
        self.each(lambda node: node.start() if node.pid() is None else None)
        # one that was cut off starts its application again by itself
        first.ctl("await_startup")
        first.ctl("await_online_nodes", str(len(self.nodes)))

    def each(self, do: Callable[[Node], object]) -> None:
        """Do something with every node at the same time."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(do, self.nodes))

    def url(self, vhost: str = "/", first: Node | None = None) -> str:
        """Return the URL that names every node, in their order or one `first`."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in sorted(self.nodes, key=lambda node: node is not first))
        return f"amqp://guest:guest@{hosts}/{'' if vhost == '/' else vhost}"

    def leaders(self, asked: Node) -> dict[str, Node | None]:
        """Return the node that leads each queue and stream, as a living node tells; None for what nobody leads."""
        lines = asked.ctl("list_queues", "--no-table-headers", "name", "leader").splitlines()
        by_name = {node.erlang_name: node for node in self.nodes}
        return {name: by_name.get(leader) for name, leader in (line.split("\t") for line in lines)}

    def leader(self, queue: str, asked: Node) -> Node:
        """Return the node that leads a queue, as a living node tells."""
        found = self.leaders(asked)[queue]
        assert found is not None, f"nobody leads {queue}"
        return found

    def connections(self, asked: Node) -> Counter[Node]:
        """Return how many connections of clients each node has, as a living node tells."""
        ports = Counter(asked.ctl("list_connections", "--no-table-headers", "port").split())
        return Counter({node: ports[str(node.port)] for node in self.nodes if str(node.port) in ports})

    def lead(self, queue: str, node: Node, asked: Node) -> None:
        """Have a node lead a queue."""
        found = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>))'
        asked.ctl("eval", f"{found}, rabbit_quorum_queue:transfer_leadership(Q, '{node.erlang_name}').")

    def cut_off(self, node: Node) -> None:
        """Part a node from the others, as a network does: neither side reaches the other. Clients reach both."""
        for left in reversed(range(CUTS)):
            self._cut(node)
            if not left or self._others_go_on(node):
                return
            self.heal(node)
            self.start()

    def _others_go_on(self, node: Node) -> bool:
        """Tell whether the others run on after a node was cut off; one that pauses does so within two seconds."""
        others = [other for other in self.nodes if other is not node]
        until = time.monotonic() + 2
        while time.monotonic() < until:
            if any(other.ctl("eval", "rabbit:is_running().").strip() != "true" for other in others):
                return False
            time.sleep(0.2)
        return True

    def _cut(self, node: Node) -> None:
        others = ",".join(f"'{other.erlang_name}'" for other in self.nodes if other is not node)
        # without the others' cookie it is refused by them, and they by it. Both are left within microseconds: one that
        # still sees it has the other take this for a partial partition, and pause until the cluster is whole again
        left = "process_flag(priority, max), [erlang:disconnect_node(N) || N <- Others]"
        node.ctl("eval", f"Others = [{others}], [erlang:set_cookie(N, cut_off) || N <- Others], {left}.")

    def heal(self, node: Node) -> None:
        """Have the others reach a node again that was cut off."""
        others = ",".join(f"'{other.erlang_name}'" for other in self.nodes if other is not node)
        node.ctl("eval", f"[erlang:set_cookie(N, erlang:get_cookie()) || N <- [{others}]].")

    def drain(self, node: Node) -> None:
        """Put a node into maintenance: it hands over what it leads, and serves no clients."""
        for left in reversed(range(DRAINS)):
            try:
                node.run("rabbitmq-upgrade", "drain")
            except RuntimeError as error:
                # it fails where a client's channel does not end in time, with the node in maintenance all the same;
                # an operator runs it again, and so does this. What fails for another reason is told at once
                if not left or "channel_termination_timeout" not in str(error):
                    raise
            else:
                return

    def revive(self, node: Node) -> None:
        """Have a node that was drained serve again."""
        node.run("rabbitmq-upgrade", "revive")

    def close(self) -> None:
        """End every node, and remove the data."""
        for node in self.nodes:
            node.close()
