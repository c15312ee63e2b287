"""L2: lost connections, restarted brokers, deleted queues."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from bus import Service
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .stage import WITHIN, Log, Placed, Shipped, Stage, staged


async def test_l2_after_a_lost_connection_the_running_handler_finishes_once_and_is_not_run_again(
    proxy: Proxy, vhost_name: str
) -> None:
    begun: Log[int] = Log()
    ended: Log[int] = Log()
    results: Log[int] = Log()
    go = asyncio.Event()
    service = Service("steady", concurrency=8)

    @service.on(Placed)
    async def work(placed: Placed) -> Shipped:
        begun.append(placed.number)
        await go.wait()
        ended.append(placed.number)
        return Shipped(number=placed.number)

    @service.on(Shipped)
    async def collect(shipped: Shipped) -> None:
        results.append(shipped.number)

    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, stage.hosting(service):
        for number in range(4):
            await stage.bus.publish(Placed(number=number))
        await begun.reaches(4)
        proxy.drop()
        await asyncio.sleep(0.5)  # long enough that the broker hands them out again
        go.set()
        await results.reaches(4)
        await stage.bus.publish(Placed(number=9))
        await results.reaches(5)
    assert sorted(begun) == sorted(ended) == sorted(results) == [0, 1, 2, 3, 9]


async def test_l2_still_running_and_new_deliveries_never_exceed_the_concurrency(proxy: Proxy, vhost_name: str) -> None:
    running, most = 0, 0
    done: Log[int] = Log()
    service = Service("steady", concurrency=3)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        done.append(placed.number)

    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage, stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(30)))
        for _ in range(4):
            await asyncio.sleep(0.1)
            proxy.drop()
        await done.holds(lambda log: set(log) == set(range(30)), "all")
    assert most <= 3


async def test_l2_a_restarted_broker_is_consumed_from_again(own_broker: Node) -> None:
    log: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage, stage.hosting(service):
        await stage.bus.publish(Placed(number=1))
        await asyncio.to_thread(own_broker.keep)
        await asyncio.to_thread(own_broker.stop)
        await asyncio.to_thread(own_broker.start)
        await stage.bus.publish(Placed(number=2))
        await log.holds(lambda seen: set(seen) == {1, 2}, "both")


async def test_l2_a_deleted_queue_is_declared_and_consumed_again(rabbitmq: Stage) -> None:
    log: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with (
        rabbitmq.hosting(service),
        await aio_pika.connect(rabbitmq.settings.url) as connection,
        connection.channel() as channel,
    ):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        await asyncio.sleep(0.2)  # 3.10 crashes the connection where a queue goes in the moment it is consumed
        await channel.queue_delete("steady.work")
        async with asyncio.timeout(20):
            number = 2
            while 2 not in {min(2, n) for n in log}:
                await rabbitmq.bus.publish(Placed(number=number))
                number += 1
                await asyncio.sleep(0.1)


async def test_l2_a_handler_whose_queue_is_deleted_still_publishes_what_it_returns(rabbitmq: Stage) -> None:
    begun: Log[int] = Log()
    results: Log[int] = Log()
    go = asyncio.Event()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> Shipped:
        begun.append(placed.number)
        await go.wait()
        return Shipped(number=placed.number)

    @service.on(Shipped)
    async def collect(shipped: Shipped) -> None:
        results.append(shipped.number)

    async with (
        rabbitmq.hosting(service),
        await aio_pika.connect(rabbitmq.settings.url) as connection,
        connection.channel() as channel,
    ):
        await rabbitmq.bus.publish(Placed(number=1))
        await begun.reaches(1)
        await asyncio.sleep(0.2)  # 3.10 crashes the connection where a queue goes in the moment it is consumed
        await channel.queue_delete("steady.work")
        await asyncio.sleep(0.2)
        go.set()
        await results.reaches(1)


async def test_l2_a_queue_that_is_deleted_again_and_again_costs_no_channel_each_time(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async def channels() -> int:
        return int(await asyncio.to_thread(broker.node.ctl, "eval", CHANNELS.format(vhost=vhost_name)))

    async def deleted_and_there_again() -> None:
        seen = len(log)
        await asyncio.sleep(0.2)  # 3.10 crashes the connection where a queue goes in the moment it is consumed
        await channel.queue_delete("steady.work")
        async with asyncio.timeout(20):
            while len(log) == seen:
                await rabbitmq.bus.publish(Placed(number=1))
                await asyncio.sleep(0.1)

    async with (
        rabbitmq.hosting(service),
        await aio_pika.connect(rabbitmq.settings.url) as connection,
        connection.channel() as channel,
    ):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        await deleted_and_there_again()
        once = await channels()
        for _ in range(4):
            await deleted_and_there_again()
        async with asyncio.timeout(WITHIN):
            # another may be opened or closed meanwhile; one each time would be four
            while await channels() >= once + 3:
                await asyncio.sleep(0.05)


CHANNELS = 'length([P || {{P, I}} <- ets:tab2list(channel_created), proplists:get_value(vhost, I) =:= <<"{vhost}">>]).'
"""Counts the channels of a virtual host, and asks none of them: another test may have suspended some of its own."""


async def test_l2_a_link_that_only_half_works_is_found(proxy: Proxy, vhost_name: str) -> None:
    log: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with (
        staged("rabbitmq", f"{proxy.url(vhost_name)}?heartbeat=1", publish_timeout=20) as stage,
        stage.hosting(service),
    ):
        await stage.bus.publish(Placed(number=1))
        await log.reaches(1)
        proxy.blackhole(up=False, down=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.bus.publish(Placed(number=2)))
            await asyncio.sleep(3.5)
            proxy.blackhole(up=False, down=False)
        await log.holds(lambda seen: set(seen) == {1, 2}, "the second")


async def test_l2_a_worker_whose_connections_an_operator_closes_goes_on_and_says_so_once(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        caplog.set_level("INFO", logger="tidegate")
        await asyncio.to_thread(broker.node.ctl, "close_all_connections", "-p", vhost_name, "maintenance")
        await rabbitmq.bus.publish(Placed(number=2))
        await log.holds(lambda seen: 2 in seen, "the second")
    told = [record.getMessage() for record in caplog.records]
    for link in ("publish", "consume"):
        assert sum("connection lost" in line and f"link={link}" in line for line in told) == 1
    assert any("maintenance" in line for line in told)
