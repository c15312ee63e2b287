"""A cluster whose nodes are killed under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from bus import Message, Service
from tests.broker.cluster import Cluster

from .outages import Publishers
from .stage import Log, staged


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    three = Cluster()
    try:
        three.start()
        yield three
    finally:
        three.close()


async def test_l2_nodes_that_are_killed_under_load_cost_nothing_that_was_confirmed(cluster: Cluster) -> None:
    handled: Log[str] = Log()
    service = Service("steady", concurrency=20)

    @service.on("#")
    async def work(message: Message) -> None:
        await asyncio.sleep(0.005)
        handled.append(message.id)

    connected, other = cluster.nodes[:2]

    async def goes_on(publishers: Publishers) -> None:
        await publishers.go_on()
        await handled.reaches(len(handled) + 200)

    async with staged("rabbitmq", cluster.url(), publish_timeout=60) as stage, stage.hosting(service):
        async with Publishers(stage, tasks=20).running() as publishers:
            await asyncio.sleep(1.5)  # a quorum queue that is younger than this does not survive the kill of its node
            await goes_on(publishers)
            await asyncio.to_thread(connected.kill)
            await goes_on(publishers)
            await asyncio.to_thread(connected.start)
            await asyncio.to_thread(cluster.lead, "steady.work", connected, other)
            assert await asyncio.to_thread(cluster.leader, "steady.work", other) is connected
            await goes_on(publishers)
            await asyncio.to_thread(connected.kill)  # this time it leads the queue, and nobody is connected to it
            await goes_on(publishers)
        await handled.holds(lambda seen: set(publishers.stored) <= set(seen), "everything that was confirmed")
