"""Three private nodes that are one cluster; each may be killed and started again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from .install import MISSING, NoBroker
from .node import Node


class Cluster:
    """A cluster of the tests' own. Its nodes share an Erlang name server, so they are processes and no containers."""

    def __init__(self) -> None:
        first = Node()
        self.nodes = (first, Node(beside=first), Node(beside=first))

    def start(self) -> None:
        """Start the nodes, and join them."""
        first, *others = self.nodes
        if first.programs.image:
            raise NoBroker(MISSING)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, self.nodes))
        for node in others:
            for command in (["stop_app"], ["reset"], ["join_cluster", first.erlang_name], ["start_app"]):
                node.ctl(*command)

    def url(self, vhost: str = "/") -> str:
        """Return the URL that names every node."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/{'' if vhost == '/' else vhost}"

    def leader(self, queue: str, asked: Node) -> Node:
        """Return the node that leads a queue, as a living node tells."""
        lines = asked.ctl("list_queues", "--no-table-headers", "name", "leader").splitlines()
        leaders = dict(line.split("\t") for line in lines)
        return next(node for node in self.nodes if node.erlang_name == leaders[queue])

    def lead(self, queue: str, node: Node, asked: Node) -> None:
        """Have a node lead a queue."""
        found = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>))'
        asked.ctl("eval", f"{found}, rabbit_quorum_queue:transfer_leadership(Q, '{node.erlang_name}').")

    def close(self) -> None:
        """End every node, and remove the data."""
        for node in self.nodes:
            node.close()
