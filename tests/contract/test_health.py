"""L4: `/livez` says that the process works, `/readyz` that every subscription is consuming."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika

from bus import Message, Queue, Service
from bus.endpoint import Request
from tests.broker.proxy import Proxy

from .stage import WITHIN, Hosted, Log, Placed, Shipped, Stage, staged


def states(hosted: Hosted) -> dict[str, Any]:
    told: Any = hosted.health.ready().body
    return {name: state["state"] for name, state in told["handlers"].items()}


async def becomes(hosted: Hosted, status: int) -> None:
    """Wait until the worker is ready, or is not."""
    async with asyncio.timeout(WITHIN):
        while hosted.health.ready().status != status:
            await asyncio.sleep(0.02)
    assert hosted.health.answer(Request("GET", "/livez", local=True)).status == 200


def pair(log: Log[int], other: Log[int]) -> Service:
    service = Service("shop")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    @service.on(Shipped)
    async def note(shipped: Shipped) -> None:
        other.append(shipped.number)

    return service


async def test_l4_a_worker_is_ready_once_it_consumes_and_not_any_more_when_it_stops(stage: Stage) -> None:
    log: Log[int] = Log()
    async with stage.hosting(pair(log, Log())) as hosted:
        await becomes(hosted, 200)
        assert states(hosted) == {"shop.work": "consuming", "shop.note": "consuming"}
        await stage.bus.publish(Placed(number=1))
        await log.reaches(1)
        await hosted.stop()
        assert hosted.health.ready().status == 503


async def test_l4_a_paused_handler_is_named_and_ready_and_its_backlog_is_for_replicas(stage: Stage) -> None:
    log: Log[int] = Log()
    other: Log[int] = Log()
    replica: Log[int] = Log()
    async with stage.hosting(pair(log, other)) as hosted:
        await becomes(hosted, 200)
        assert hosted.health.answer(Request("POST", "/pause/shop.work", local=True)).status == 200
        await becomes(hosted, 200)
        assert states(hosted) == {"shop.work": "paused", "shop.note": "consuming"}
        await stage.bus.publish(*(Placed(number=number) for number in range(9)), Shipped(number=1))
        await other.reaches(1)
        async with asyncio.timeout(WITHIN):
            while await stage.ready("shop.work") < 9:
                await asyncio.sleep(0.05)
        assert log == []
        async with stage.hosting(pair(replica, Log())):
            await replica.holds(lambda seen: set(seen) == set(range(9)), "the backlog, in the replica")
        assert hosted.health.answer(Request("POST", "/resume/shop", local=True)).status == 200
        await stage.bus.publish(Placed(number=10))
        await log.reaches(1)
        assert states(hosted)["shop.work"] == "consuming"
    assert log == [10]


async def test_l4_without_its_broker_it_is_not_ready_and_with_it_again_it_is(proxy: Proxy, vhost_name: str) -> None:
    log: Log[int] = Log()
    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, stage.hosting(pair(log, Log())) as hosted:
        await becomes(hosted, 200)
        proxy.refuse(True)
        proxy.drop()
        await becomes(hosted, 503)
        assert set(states(hosted).values()) == {"not consuming"}
        proxy.refuse(False)
        await becomes(hosted, 200)
        await stage.bus.publish(Placed(number=1))
        await log.reaches(1)


async def test_l4_a_paused_worker_without_its_broker_is_not_ready(proxy: Proxy, vhost_name: str) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, stage.hosting(pair(Log(), Log())) as hosted:
        hosted.worker.pause("shop")
        await becomes(hosted, 200)
        proxy.refuse(True)
        proxy.drop()
        await becomes(hosted, 503)
        proxy.refuse(False)
        await becomes(hosted, 200)
        assert set(states(hosted).values()) == {"paused"}


async def test_l4_a_queue_that_is_missing_is_told_until_it_is_there(rabbitmq: Stage) -> None:
    service = Service("shop")

    @service.on(Queue("theirs"))
    async def work(message: Message) -> None: ...

    @service.on(Placed)
    async def other(placed: Placed) -> None: ...

    async with (
        rabbitmq.hosting(service) as hosted,
        await aio_pika.connect(rabbitmq.settings.url) as connection,
        connection.channel() as channel,
    ):
        async with asyncio.timeout(WITHIN):
            while states(hosted) != {"shop.work": "not consuming", "shop.other": "consuming"}:
                await asyncio.sleep(0.02)
        assert hosted.health.ready().status == 503
        await channel.declare_queue("theirs", durable=True)
        await becomes(hosted, 200)


async def test_l4_a_handler_that_was_refused_its_queue_is_named_with_the_reason(rabbitmq: Stage) -> None:
    log: Log[int] = Log()
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("shop.note", durable=True)  # a classic one
        async with rabbitmq.hosting(pair(log, Log())) as hosted:
            told: Any = hosted.health.ready()
            assert told.status == 503
            assert told.body["handlers"]["shop.note"]["state"] == "not consuming"
            assert "inequivalent arg" in told.body["handlers"]["shop.note"]["why"]
            await rabbitmq.bus.publish(Placed(number=1))
            await log.reaches(1)
