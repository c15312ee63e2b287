"""A cluster whose nodes are killed, parted from the others and rolled, under load. It runs by deploy/cluster.conf."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest

from bus import BusUnavailable, Message, Reject, Service
from bus.transport.rabbitmq import transport
from tests.broker.cluster import Cluster
from tests.broker.install import programs
from tests.broker.node import Node

from .outages import Publishers
from .stage import Log, Placed, Stage, staged


pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]

T = TypeVar("T")

MORE = 50
"""Messages that are published and handled after each change: what is stuck shows in any number."""
WITHIN = 45.0
"""Seconds to wait for what three nodes do, of which one has just died."""


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    if programs().image:
        pytest.skip("NOT RUN: three nodes need rabbitmq-server itself, and there is only Docker")
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(three: Cluster) -> Cluster:
    """All three nodes, whatever an earlier test did to them."""
    three.start()
    return three


class Load:
    """Publishers, and a handler; goes on until everything is handled that was confirmed."""

    def __init__(self, stage: Stage, publishers: Publishers, handled: Log[str]) -> None:
        self.stage = stage
        self._publishers = publishers
        self._handled = handled

    async def goes_on(self) -> None:
        await self._publishers.go_on(MORE, WITHIN)
        await self._handled.reaches(len(self._handled) + MORE, WITHIN)

    @classmethod
    @asynccontextmanager
    async def on(cls, cluster: Cluster, namespace: str) -> AsyncIterator[Load]:
        handled: Log[str] = Log()
        service = Service("steady", concurrency=20)

        @service.on("#")
        async def work(message: Message) -> None:
            await asyncio.sleep(0.005)
            handled.append(message.id)

        async with (
            staged("rabbitmq", cluster.url(), publish_timeout=60, namespace=namespace) as stage,
            stage.hosting(service),
        ):
            async with Publishers(stage, tasks=10).running() as publishers:
                load = cls(stage, publishers, handled)
                await load.goes_on()
                yield load
            await handled.holds(
                lambda seen: set(publishers.stored) <= set(seen), "everything that was confirmed", WITHIN
            )


async def connected(cluster: Cluster) -> Node:
    """Return a node that somebody is connected to."""
    (node, _), *_ = (await asyncio.to_thread(cluster.connections, cluster.nodes[0])).most_common()
    return node


async def test_l3_what_a_single_worker_declares_is_led_by_every_node_and_kept_by_each(cluster: Cluster) -> None:
    async with staged("rabbitmq", cluster.url(), namespace="spread") as stage:
        services = [Service(f"number{number}") for number in range(3)]
        for service in services:
            for name in ("first", "second", "third"):
                service.on("#", name=name)(ignore)
        await stage.declare(*services)
    asked = cluster.nodes[0]
    handlers = {f"spread.{service.name}.{handler.name}" for service in services for handler in service.handlers}
    leaders = await asyncio.to_thread(cluster.leaders, asked)
    assert Counter(leaders[name] for name in handlers) == dict.fromkeys(cluster.nodes, 3)
    kept = await asyncio.to_thread(asked.ctl, "list_queues", "--no-table-headers", "name", "members")
    replicas = {name: members.count("@") for name, members in (line.split("\t") for line in kept.splitlines())}
    assert {replicas[name] for name in replicas if name.startswith("spread.")} == {3}


async def ignore(message: Message) -> None: ...


async def test_l2_nodes_that_are_drained_and_revived_one_by_one_cost_nothing_that_was_confirmed(
    cluster: Cluster,
) -> None:
    async with Load.on(cluster, "rolled") as load:
        for node in cluster.nodes:
            await asyncio.to_thread(cluster.drain, node)
            await load.goes_on()
            assert node not in await asyncio.to_thread(cluster.connections, node)
            await asyncio.to_thread(cluster.revive, node)


async def test_l2_a_node_that_is_cut_off_costs_nothing_that_was_confirmed_and_is_left_meanwhile(
    cluster: Cluster,
) -> None:
    async with Load.on(cluster, "parted") as load:
        node = await connected(cluster)
        await asyncio.to_thread(cluster.cut_off, node)
        await load.goes_on()
        await asyncio.to_thread(cluster.heal, node)
        await load.goes_on()
    await asyncio.to_thread(cluster.start)


async def test_l2_nodes_that_are_killed_under_load_cost_nothing_that_was_confirmed(cluster: Cluster) -> None:
    async with Load.on(cluster, "killed") as load:
        await asyncio.to_thread(cluster.each, Node.keep)
        first = await connected(cluster)
        other = next(node for node in cluster.nodes if node is not first)
        await asyncio.to_thread(first.kill)
        await load.goes_on()
        await asyncio.to_thread(first.start)
        await asyncio.to_thread(cluster.lead, "killed.steady.work", first, other)
        assert await asyncio.to_thread(cluster.leader, "killed.steady.work", other) is first
        await load.goes_on()
        await asyncio.to_thread(first.kill)  # this time it leads the queue, and nobody is connected to it
        await load.goes_on()


async def test_f7_letters_outlive_the_leader_of_their_stream_while_they_are_written_listed_and_replayed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: Log[int] = Log()
    service, mended = Service("picky"), asyncio.Event()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        if not mended.is_set():
            raise Reject("not yet")
        handled.append(placed.number)

    opened = partial(staged, "rabbitmq", publish_timeout=3, namespace="lettered")
    async with opened(cluster.url()) as stage, stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        await stage.letters("picky", 20, WITHIN)
        await asyncio.to_thread(cluster.each, Node.keep)
        leader = await asyncio.to_thread(cluster.leader, "lettered.picky.dead", cluster.nodes[0])
        monkeypatch.setattr(transport, "in_any_order", tuple)
        async with opened(cluster.url(first=leader)) as operator, asyncio.timeout(120):
            assert len(await operator.letters("picky", 20, WITHIN)) == 20
            await asyncio.to_thread(leader.kill)
            for number in range(20, 40):
                await insisted(partial(stage.bus.publish, Placed(number=number), id=str(number)))
            while len(found := await insisted(partial(operator.letters, "picky", 20))) < 40:
                await asyncio.sleep(0.1)
            mended.set()
            for letter in found:
                await insisted(partial(operator.transport.dead_letters.replay, letter))
            await handled.holds(lambda seen: set(seen) == set(range(40)), "every letter", WITHIN)
            assert await insisted(partial(operator.letters, "picky", 0)) == []


async def test_p6_a_delay_is_taken_while_any_one_node_is_gone(cluster: Cluster) -> None:
    handled: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        handled.append(placed.number)

    opened = staged("rabbitmq", cluster.url(), publish_timeout=30, namespace="delayed")
    async with opened as stage, stage.hosting(service):
        await stage.bus.publish(Placed(number=0), delay=0.1)
        await handled.reaches(1, WITHIN)
        await asyncio.to_thread(cluster.each, Node.keep)
        for node in cluster.nodes:
            await asyncio.to_thread(node.kill)
            await stage.bus.publish(Placed(number=1), delay=0.1)
            await asyncio.to_thread(node.start)


async def test_f4_no_letter_is_lost_that_follows_one_whose_stream_got_another_leader(
    cluster: Cluster,
) -> None:
    handled: Log[int] = Log()
    service = Service("picky")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        handled.append(placed.number)
        if placed.number < 0:
            raise Reject("no such number")

    opened = partial(staged, "rabbitmq", publish_timeout=10, namespace="followed")
    async with opened(cluster.url()) as stage:
        await stage.declare(service)
    asked, leader = cluster.nodes[0], await asyncio.to_thread(cluster.leader, "followed.picky.dead", cluster.nodes[0])
    near = next(node for node in cluster.nodes if node is not leader)
    await asyncio.to_thread(cluster.lead, "followed.picky.work", near, asked)
    async with opened(near.url()) as stage, stage.hosting(service):
        # what a channel has published by now is more than what it has given to the stream
        await stage.bus.publish(*(Placed(number=number) for number in range(100)))
        await handled.reaches(100, WITHIN)
        leader.freeze()
        await stage.bus.publish(Placed(number=-1))
        await handled.reaches(101, WITHIN)
        await asyncio.sleep(0.5)  # its letter is under way
        await asyncio.to_thread(leader.kill)
        async with asyncio.timeout(WITHIN):
            # between two leaders a stream may be without one, and may be missing from the list
            while (await asyncio.to_thread(cluster.leaders, near)).get("followed.picky.dead") in (leader, None):
                await asyncio.sleep(0.1)
        for number in range(2, 42):
            await stage.bus.publish(Placed(number=-number))
            await asyncio.sleep(0.1)  # some of them come after the channel was told of the new leader
        await stage.letters("picky", 41, WITHIN)


async def insisted(act: Callable[[], Awaitable[T]]) -> T:
    """Do what an operator does who is told that it cannot be done now."""
    while True:
        try:
            return await act()
        except BusUnavailable:
            await asyncio.sleep(0.2)
