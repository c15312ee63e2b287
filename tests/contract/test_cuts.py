"""L2: connections that are cut after every so many bytes of their life."""

from __future__ import annotations

import asyncio
import os
from itertools import chain

import aio_pika
import pytest

from bus import Service
from bus.transport.rabbitmq import supervisor
from tests.broker.proxy import Proxy

from .stage import Log, Placed, Shipped, staged


DENSE = int(os.environ.get("TIDEGATE_CUTS", "0"))
"""Bytes between two cuts; 0 for the few that the suite has time for."""
LIFE = 12_000
"""Bytes of a connection's life in which everything happens: log in, declare, consume, deliver, ack."""


def cuts(*few: int) -> list[int]:
    return list(range(0, LIFE, DENSE)) if DENSE else list(few)


def service(begun: Log[int], results: Log[int]) -> Service:
    """A service that answers each message with another."""
    service = Service("steady", concurrency=4)

    @service.on(Placed)
    async def work(placed: Placed) -> Shipped:
        begun.append(placed.number)
        return Shipped(number=placed.number)

    @service.on(Shipped)
    async def collect(shipped: Shipped) -> None:
        results.append(shipped.number)

    return service


@pytest.mark.timeout(3_600 if DENSE else 120)
async def test_l2_a_worker_starts_however_often_its_first_connections_are_cut(proxy: Proxy, vhost_name: str) -> None:
    """The first three are the publisher's, aio-pika's that declares, and the worker's; others take their place."""
    for number, cut in enumerate(cuts(0, 7, 8, 300, 520, 521, 560, 640, 700, 900, 1300, 2000, 2600, 3300)):
        begun: Log[int] = Log()
        results: Log[int] = Log()
        proxy.cut_after(cut, connections=4)
        hosted = service(begun, results)
        async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage, stage.hosting(hosted):
            await stage.bus.publish(Placed(number=number))
            await results.holds(lambda seen, number=number: number in seen, f"the result after a cut at {cut}")  # type: ignore[misc]


@pytest.mark.timeout(3_600 if DENSE else 120)
async def test_l2_nothing_is_lost_or_stuck_wherever_in_their_life_connections_are_cut(
    proxy: Proxy, vhost: str, vhost_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STEADY", 0)  # each cut is an outage of its own
    begun: Log[int] = Log()
    results: Log[int] = Log()
    numbers = iter(range(1_000_000))
    swept = cuts(*chain(range(0, 640, 40), range(640, 1_000, 15), range(1_000, 3_000, 80), range(3_000, LIFE, 600)))
    async with (
        staged("rabbitmq", vhost) as direct,
        staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage,
        stage.hosting(service(begun, results)),
    ):
        for cut in swept:
            proxy.cut_after(cut, connections=2)
            proxy.drop()
            sent = [next(numbers) for _ in range(8)]
            async with asyncio.TaskGroup() as tasks:
                for number in sent:
                    tasks.create_task(stage.bus.publish(Placed(number=number)))
            await results.holds(lambda seen, sent=sent: set(sent) <= set(seen), f"what was sent at {cut}")  # type: ignore[misc]
        proxy.cut_after(0, connections=0)
        proxy.drop()
        last, *whole = (next(numbers) for _ in range(9))
        for sent in ([last], whole):
            await stage.bus.publish(*(Placed(number=number) for number in sent))
            await results.holds(lambda seen, sent=sent: set(sent) <= set(seen), "what nothing cuts off")  # type: ignore[misc]
        async with asyncio.timeout(20):
            while await direct.ready("steady.work") or await direct.ready("steady.collect"):
                await asyncio.sleep(0.1)
    assert len(begun) <= len(set(begun)) + COPIES * len(swept)
    assert sorted(number for number in begun if number in whole) == whole


COPIES = 8
"""Messages of a round that may be published again, because their confirm was cut off; each copy runs."""


@pytest.mark.timeout(3_600 if DENSE else 120)
async def test_l2_a_deleted_queue_comes_back_though_the_connections_that_declare_it_are_cut(
    proxy: Proxy, vhost: str, vhost_name: str
) -> None:
    begun: Log[int] = Log()
    results: Log[int] = Log()
    async with (
        staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage,
        stage.hosting(service(begun, results)),
        await aio_pika.connect(vhost) as connection,
        connection.channel() as channel,
    ):
        for number, cut in enumerate(cuts(600, 1_000, 1_400, 1_800, 2_200)):
            proxy.cut_after(cut, connections=2)
            await asyncio.sleep(0.2)  # 3.10 crashes the connection where a queue goes in the moment it is consumed
            await channel.queue_delete("steady.work")
            async with asyncio.timeout(20):
                while number not in results:
                    await stage.bus.publish(Placed(number=number))
                    await asyncio.sleep(0.05)
