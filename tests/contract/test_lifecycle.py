"""L: the life cycle of a worker; its links are in test_links.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import aio_pika
import pytest

from bus import AccessRefused, ConfigurationError, Context, Service, discovery, fixed, immediate
from bus.middleware.logging import logging
from bus.worker import Worker
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy

from .stage import Log, Placed, Shipped, Stage, staged


async def test_l1_a_stop_finishes_what_runs_and_starts_nothing_new(stage: Stage) -> None:
    begun: Log[int] = Log()
    ended: Log[int] = Log()
    service = Service("slow", concurrency=4)

    @service.on(Placed)
    async def slow(placed: Placed) -> None:
        begun.append(placed.number)
        await asyncio.sleep(0.2)
        ended.append(placed.number)

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        await begun.reaches(4)
        await hosted.stop()
    at_stop = list(begun)
    assert sorted(ended) == sorted(at_stop)
    async with stage.hosting(service):
        await ended.reaches(20)
        await asyncio.sleep(0.05)
    assert sorted(begun) == sorted(ended) == list(range(20))


async def test_l1_what_outlasts_the_grace_is_released_and_comes_again(stage: Stage) -> None:
    log: Log[str] = Log()
    service = Service("slow")

    @service.on(Placed)
    async def slow(placed: Placed) -> None:
        log.append("begins")
        if len(log) == 1:
            await asyncio.sleep(60)
        log.append("ends")

    async with stage.hosting(service, grace=0.2) as hosted:
        await stage.bus.publish(Placed())
        await log.reaches(1)
        await hosted.stop()
    async with stage.hosting(service):
        await log.reaches(3)
    assert log == ["begins", "begins", "ends"]


async def test_l1_nothing_that_finished_runs_again_after_a_stop(stage: Stage) -> None:
    log: Log[int] = Log()
    service = Service("quick", concurrency=32)

    @service.on(Placed)
    async def quick(placed: Placed) -> None:
        log.append(placed.number)

    await stage.declare(service)
    await stage.bus.publish(*(Placed(number=number) for number in range(600)))
    for part in (100, 300, 600):
        async with stage.hosting(service) as hosted:
            await log.reaches(part)
            await hosted.stop()
    assert sorted(log) == list(range(600))


async def test_l3_a_queue_with_other_arguments_stops_its_own_handler_only_and_says_why(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[int] = Log()
    service = Service("mixed")

    @service.on(Placed)
    async def changed(placed: Placed) -> None:
        raise AssertionError("it must not run")

    @service.on(Placed, name="fine")
    async def fine(placed: Placed) -> None:
        log.append(placed.number)

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("mixed.changed", durable=True, arguments={"x-queue-type": "classic"})
    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
    (record,) = [record for record in caplog.records if "handler stopped" in record.getMessage()]
    assert "mixed.changed" in record.getMessage()
    assert "x-queue-type" in record.getMessage() or "x-dead-letter" in record.getMessage()
    assert "`python app.py topology migrate mixed.changed` moves" in record.getMessage()


async def test_l3_declaring_twice_changes_nothing(stage: Stage) -> None:
    service = Service("same")

    @service.on(Placed, retry=immediate(2))
    async def work(placed: Placed) -> None: ...

    await stage.declare(service)
    await stage.bus.publish(Placed(), required=True)
    await stage.declare(service)
    await stage.bus.publish(Placed(), required=True)


async def test_l3_replicas_that_declare_at_the_same_time_agree(vhost: str) -> None:
    log: Log[int] = Log()
    service = Service("many")

    @service.on(Placed, retry=fixed(3, 0.2))
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with AsyncExitStack() as stack:
        stages = [await stack.enter_async_context(staged("rabbitmq", vhost)) for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for stage in stages:
                tasks.create_task(stage.declare(service))
        for stage in stages:
            await stack.enter_async_context(stage.hosting(service))
        await stages[0].bus.publish(*(Placed(number=number) for number in range(40)), required=True)
        await log.reaches(40)
    assert sorted(log) == list(range(40))


async def test_l3_a_step_of_retries_with_other_arguments_stops_its_handler_and_is_named(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("mixed")

    @service.on(Placed, retry=fixed(2, 7))
    async def work(placed: Placed) -> None:
        raise AssertionError("it must not run")

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("mixed.retry.7000", durable=True, arguments={"x-queue-type": "quorum"})
    async with rabbitmq.hosting(service) as hosted, asyncio.timeout(10):
        await asyncio.wait([hosted.task])
    assert any("mixed.work" in r.getMessage() and "mixed.retry.7000" in r.getMessage() for r in caplog.records)


async def test_l3_a_user_that_may_not_configure_works_on_what_was_declared_before(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("poor")

    @service.on(Placed, retry=immediate(2))
    async def work(placed: Placed) -> Shipped:
        log.append(placed.number)
        if len(log) == 1:
            raise ValueError
        return Shipped()

    await rabbitmq.declare(service)
    user = f"poor-{vhost_name}"
    await asyncio.to_thread(broker.node.ctl, "add_user", user, "secret")
    await asyncio.to_thread(broker.node.ctl, "set_permissions", "-p", vhost_name, user, "^$", ".*", ".*")
    url = rabbitmq.settings.url.replace("guest:guest", f"{user}:secret")
    async with staged("rabbitmq", url) as stage, stage.hosting(service):
        await stage.bus.publish(Placed(number=5))
        await log.reaches(2)
    assert log == [5, 5]


async def test_l3_a_user_that_may_not_read_is_told_so(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("blind")

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    await rabbitmq.declare(service)
    user = f"blind-{vhost_name}"
    await asyncio.to_thread(broker.node.ctl, "add_user", user, "secret")
    await asyncio.to_thread(broker.node.ctl, "set_permissions", "-p", vhost_name, user, "^$", ".*", "^$")
    url = rabbitmq.settings.url.replace("guest:guest", f"{user}:secret")
    async with staged("rabbitmq", url) as stage, stage.hosting(service) as hosted:
        async with asyncio.timeout(10):
            await asyncio.wait([hosted.task])
    assert any("access to queue 'blind.work'" in record.getMessage() for record in caplog.records)


class Pool:
    def __init__(self, log: Log[str]) -> None:
        self.log = log


async def test_l5_resources_open_before_the_first_delivery_and_close_after_the_last(stage: Stage) -> None:
    log: Log[str] = Log()
    service = Service("resourceful")

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        await asyncio.sleep(0.05)
        log.append("open")
        yield Pool(log)
        log.append("close")

    @service.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None:
        pool.log.append("begins")
        await asyncio.sleep(0.1)
        pool.log.append("ends")

    await stage.declare(service)
    await stage.bus.publish(Placed())
    async with stage.hosting(service) as hosted:
        await log.reaches(2)
        await hosted.stop()
    assert log == ["open", "begins", "ends", "close"]


async def test_l5_a_worker_can_be_stopped_twice_and_started_again(stage: Stage) -> None:
    log: Log[int] = Log()
    service = Service("again")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    for number in range(3):
        async with stage.hosting(service) as hosted:
            await stage.bus.publish(Placed(number=number))
            await log.reaches(number + 1)
            await hosted.stop()
            await hosted.stop()
    assert log == [0, 1, 2]


async def test_l5_a_worker_can_be_stopped_while_it_waits_for_its_broker(proxy: Proxy, vhost_name: str) -> None:
    proxy.refuse(True)
    service = Service("early")

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    async with staged("rabbitmq", proxy.url(vhost_name)) as stage:
        stop = asyncio.Event()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(worker(stage, service).run(stop))
            await asyncio.sleep(0.2)
            stop.set()


async def test_access_is_refused_with_one_line(broker: Shared) -> None:
    service = Service("wrong")

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    url = broker.node.url().replace("guest:guest", "guest:wrong")
    async with staged("rabbitmq", url) as stage:
        with pytest.raises(ExceptionGroup) as raised:
            async with stage.hosting(service):
                pass
    assert raised.group_contains(AccessRefused, match="ACCESS_REFUSED")


async def test_l5_a_stop_while_a_resource_opens_closes_those_that_are_open(stage: Stage) -> None:
    log: Log[str] = Log()
    service = Service("early")

    @service.resource
    async def first() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            log.append("first is closed")

    @service.resource
    async def second(first: int) -> AsyncIterator[str]:
        log.append("second opens")
        await asyncio.Event().wait()
        yield ""

    @service.on(Placed)
    async def work(placed: Placed, second: str) -> None: ...

    stop, started = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(worker(stage, service).run(stop, started.set))
        await log.reaches(1)
        stop.set()
    assert log == ["second opens", "first is closed"]
    assert not started.is_set()


async def test_l5_a_resource_that_is_misconfigured_ends_the_worker_with_what_it_raised(stage: Stage) -> None:
    service = Service("early")

    @service.resource
    async def pool() -> AsyncIterator[int]:
        raise ConfigurationError("POOL_SIZE is no number")
        yield 1

    @service.on(Placed)
    async def work(placed: Placed, pool: int) -> None: ...

    with pytest.raises(ExceptionGroup) as raised:
        await worker(stage, service).run(asyncio.Event())
    assert raised.group_contains(ConfigurationError, match="POOL_SIZE")


async def test_l5_a_stop_before_the_start_runs_nothing(stage: Stage) -> None:
    ran: Log[int] = Log()
    service = Service("early")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        ran.append(placed.number)

    await stage.declare(service)
    await stage.bus.publish(Placed(number=1))
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(10):
        await worker(stage, service).run(stop)
    assert ran == []
    async with stage.hosting(service):
        await ran.reaches(1)


async def test_l1_a_thread_that_outlasts_the_grace_is_released_and_its_message_comes_again(stage: Stage) -> None:
    attempts: Log[int] = Log()
    loop, go, fresh = asyncio.get_running_loop(), threading.Event(), [True]
    service = Service("slow")

    @service.on(Placed)
    def slow(placed: Placed, context: Context) -> None:
        hanging = bool(fresh) and fresh.pop()
        loop.call_soon_threadsafe(attempts.append, context.attempt)
        if hanging:
            go.wait(30)

    try:
        async with stage.hosting(service, grace=0.2) as hosted:
            await stage.bus.publish(Placed())
            await attempts.reaches(1)
            await hosted.stop()
        async with stage.hosting(service):
            await attempts.reaches(2)
    finally:
        go.set()
    assert attempts == [1, 1]


def worker(stage: Stage, service: Service) -> Worker:
    return Worker(
        stage.transport,
        [service],
        app="contract",
        events=discovery.named([service]),
        settings=replace(stage.settings, grace=1),
        log=logging(),
    )
