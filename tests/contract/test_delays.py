"""P6: delays, of any length, in any number, through whatever happens to the broker."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import aio_pika
import orjson
import pytest
import structlog

from bus import (
    BusUnavailable,
    ConfigurationError,
    Context,
    Fate,
    Message,
    PublishRefused,
    RetryAfter,
    Service,
    Unroutable,
    fixed,
)
from bus.transport.rabbitmq import delay as cascade
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .stage import Log, Placed, Shipped, Stage, staged


def waiting(log: Log[tuple[int, float]]) -> Service:
    service = Service("late", concurrency=64)

    @service.on(Placed)
    async def late(placed: Placed) -> None:
        log.append((placed.number, time.time()))

    return service


def in_order(count: int) -> list[int]:
    return list(range(count))


async def counts(stage: Stage, *names: str) -> dict[str, int]:
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        queues = {name: await channel.declare_queue(name, passive=True) for name in names}
        return {name: queue.declaration_result.message_count or 0 for name, queue in queues.items()}


async def holding(stage: Stage, name: str, count: int) -> None:
    """Wait until a queue holds so many messages: a quorum queue counts with a lag."""
    async with asyncio.timeout(20):
        while (found := (await counts(stage, name))[name]) != count:
            assert found < count, name
            await asyncio.sleep(0.1)


async def deleted(stage: Stage, *, exchanges: tuple[str, ...] = (), queues: tuple[str, ...] = ()) -> None:
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        for name in exchanges:
            await channel.exchange_delete(name)
        for name in queues:
            await channel.queue_delete(name)


async def test_p6_three_hundred_mixed_delays_come_once_each_and_none_early(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    chance, longest = random.Random(6), 8 if stage.kind == "rabbitmq" else 2
    delays = [chance.uniform(0.1, longest) for _ in range(300)]
    due = {}
    async with stage.hosting(waiting(log)):
        async with asyncio.TaskGroup() as tasks:
            for number, delay in enumerate(delays):
                due[number] = time.time() + delay
                tasks.create_task(stage.bus.publish(Placed(number=number), delay=delay))
        await log.reaches(300)
    assert sorted(number for number, _ in log) == in_order(300)
    assert [number for number, at in log if at < due[number]] == []


async def test_p6_a_short_delay_overtakes_a_long_one(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    async with stage.hosting(waiting(log)):
        for number, delay in enumerate((3_600, 60, 0.2, 0)):
            await stage.bus.publish(Placed(number=number), delay=delay)
        await log.reaches(2)
    assert sorted(number for number, _ in log) == [2, 3]


async def test_p6_a_point_in_time_is_a_delay_too_and_what_is_past_is_now(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    async with stage.hosting(waiting(log)):
        at = datetime.now(UTC) + timedelta(seconds=0.5)
        await stage.bus.publish(Placed(number=0), at=at)
        await stage.bus.publish(Placed(number=1), at=datetime(1999, 1, 1, tzinfo=UTC))
        await stage.bus.publish(Placed(number=2), delay=-1)
        await log.reaches(3)
    came = dict(log)
    assert sorted(came) == [0, 1, 2]
    assert came[0] >= at.timestamp()


async def test_p6_a_delayed_message_is_delayed_again_and_again_and_by_the_ladder_between(stage: Stage) -> None:
    log: Log[tuple[str, int, float]] = Log()
    service = Service("patient")
    waits = {1: RetryAfter(0.35), 2: ValueError(), 3: RetryAfter(0.15), 4: RetryAfter(0.25)}

    @service.on(Placed, retry=fixed(9, 0.2))
    async def work(placed: Placed, context: Context) -> None:
        log.append((context.message.id, context.attempt, time.time()))
        if (error := waits.get(context.attempt)) is not None:
            raise error

    async with stage.hosting(service):
        before = time.time()
        (id,) = await stage.bus.publish(Placed(number=5), delay=0.3)
        await log.reaches(5)
    assert [(which, attempt) for which, attempt, _ in log] == [(id, attempt) for attempt in (1, 2, 3, 4, 5)]
    times = [before, *(at for _, _, at in log)]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(gap >= least for gap, least in zip(gaps, (0.3, 0.35, 0.2, 0.15, 0.25), strict=True)), gaps


async def test_p6_a_handler_publishes_with_a_delay(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    started: Log[float] = Log()
    service = Service("overdue")

    @service.on(Shipped)
    async def remind(shipped: Shipped, context: Context) -> None:
        started.append(time.time())
        context.publish(Placed(number=7), delay=0.4)

    async with stage.hosting(service, waiting(log)):
        await stage.bus.publish(Shipped())
        await log.reaches(1)
    assert log[0][1] - started[0] >= 0.4


async def test_p6_a_delay_for_one_queue_reaches_it_alone(stage: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    service = Service("shop")

    @service.on(Placed, name="one")
    async def one(placed: Placed) -> None:
        log.append(("one", placed.number))

    @service.on(Placed, name="other")
    async def other(placed: Placed) -> None:
        log.append(("other", placed.number))

    async with stage.hosting(service):
        await stage.bus.publish(Placed(number=1), delay=0.1, to="shop.one")
        await log.reaches(1)
        await stage.bus.publish(Placed(number=2), to="shop.other")
        await log.reaches(2)
    assert log == [("one", 1), ("other", 2)]


async def test_p6_a_queue_that_is_not_there_is_told_at_once(stage: Stage) -> None:
    with pytest.raises(Unroutable, match="nobody") as raised:
        await stage.bus.publish(Placed(), id="mine", delay=5, to="nobody.here")
    assert raised.value.fates == {"mine": Fate.UNROUTABLE}
    assert len(await stage.bus.publish(Placed(), delay=0.1)) == 1


@pytest.mark.parametrize("delay", [timedelta(days=310), timedelta(days=1), timedelta(days=51)], ids=str)
async def test_p6_the_longest_delays_are_held_and_hold_nothing_up(rabbitmq: Stage, delay: timedelta) -> None:
    log: Log[tuple[int, float]] = Log()
    async with rabbitmq.hosting(waiting(log)):
        await rabbitmq.bus.publish(Placed(number=1), delay=delay)
        await holding(rabbitmq, cascade.entrance(rabbitmq.transport._names, delay), 1)  # type: ignore[attr-defined]
        await rabbitmq.bus.publish(Placed(number=2), delay=0.1)
        await log.reaches(1)
    assert [number for number, _ in log] == [2]


async def test_p6_more_than_310_days_is_refused(stage: Stage) -> None:
    await stage.bus.publish(Placed(), delay=timedelta(days=310))
    for delay in (timedelta(days=310, microseconds=1), timedelta(days=100_000), 1e300, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="delay"):
            await stage.bus.publish(Placed(), delay=delay)
    RetryAfter(timedelta(days=310))
    with pytest.raises(ConfigurationError, match="310 days"):
        RetryAfter(timedelta(days=310, microseconds=1))


async def test_p6_forty_messages_to_a_removed_handler_in_front_delay_nobody_else(rabbitmq: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    failed: Log[int] = Log()
    leaving = Service("leaving", concurrency=40)
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("theirs", durable=True)

    @leaving.on(Shipped, name="work")
    async def work(shipped: Shipped) -> None:
        failed.append(shipped.number)
        raise RetryAfter(8.1)

    async with rabbitmq.hosting(waiting(log)):
        async with rabbitmq.hosting(leaving) as hosted:
            await rabbitmq.bus.publish(*(Placed(number=-1 - n) for n in range(40)), delay=8.35, to="theirs")
            await rabbitmq.bus.publish(*(Shipped(number=number) for number in range(40)))
            await failed.reaches(40)
            await hosted.stop()
        # long before any of them comes back
        await deleted(rabbitmq, queues=("leaving.work", "theirs"))
        await rabbitmq.bus.publish(*(Placed(number=number) for number in range(40)), delay=8.5)
        await log.reaches(40)
        assert sorted(number for number, _ in log) == in_order(40)
        letters = await rabbitmq.letters("leaving", 40)
        await holding(rabbitmq, cascade.LOST, 40)
    assert sorted(orjson.loads(letter.message.body)["number"] for letter in letters) == in_order(40)
    assert {(letter.handler, letter.failure.attempts) for letter in letters} == {("work", 1)}
    assert "renamed or removed" in letters[0].failure.error


async def test_p6_a_delay_outlives_the_broker(own_broker: Node) -> None:
    log: Log[tuple[int, float]] = Log()
    due = {}
    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage, stage.hosting(waiting(log)):
        await stage.bus.publish(Placed(number=0), delay=0.1)
        await log.reaches(1)
        await asyncio.to_thread(own_broker.keep)
        for number, delay in enumerate((0.7, 3.1, 9.3, 9.7), 1):
            due[number] = time.time() + delay
            await stage.bus.publish(Placed(number=number), delay=delay)
        await asyncio.to_thread(own_broker.kill)
        await asyncio.to_thread(own_broker.start)
        await log.holds(lambda seen: {number for number, _ in seen} == set(range(5)), "all five")
    assert [number for number, at in log[1:] if at < due[number]] == []


LEVELS = tuple(f"delay.{level}" for level in range(cascade.LEVELS))
DELETED = {
    "all of it": (
        (*LEVELS, cascade.DONE, cascade.RETURN, cascade.LOST, cascade.KEPT),
        (*LEVELS, cascade.VOID, cascade.LOST),
    ),
    "the exchange of the entrance": (("delay.1",), ()),
    "the queue of the entrance": ((), ("delay.1",)),
}


@pytest.mark.parametrize(("exchanges", "queues"), DELETED.values(), ids=DELETED.keys())
async def test_p6_a_cascade_that_was_deleted_is_declared_again(
    rabbitmq: Stage, exchanges: tuple[str, ...], queues: tuple[str, ...]
) -> None:
    log: Log[tuple[int, float]] = Log()
    async with rabbitmq.hosting(waiting(log)):
        await rabbitmq.bus.publish(Placed(number=1), delay=0.1)
        await log.reaches(1)
        await deleted(rabbitmq, exchanges=exchanges, queues=queues)
        await rabbitmq.bus.publish(Placed(number=2), delay=0.25)
        await rabbitmq.bus.publish(Placed(number=3), delay=0.25, to="late.late")
        await log.reaches(3)
    assert sorted(number for number, _ in log) == [1, 2, 3]


async def test_p6_a_handler_whose_queue_was_deleted_is_found_by_its_delays_again(rabbitmq: Stage) -> None:
    log: Log[tuple[int, int]] = Log()
    service = Service("patient")

    @service.on(Placed, retry=fixed(3, 5))
    async def work(placed: Placed, context: Context) -> None:
        log.append((placed.number, context.attempt))
        if context.attempt == 1:
            raise RetryAfter(0.15)

    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(2)
        await deleted(rabbitmq, queues=("patient.work",))
        async with asyncio.timeout(20):
            while True:
                try:
                    await rabbitmq.bus.publish(Placed(number=2), required=True)
                    break
                except Unroutable:
                    await asyncio.sleep(0.05)
        await log.reaches(4)
    assert log == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def test_p6_publishers_of_little_patience_declare_the_cascade_together(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log[tuple[int, float]] = Log()
    declare = cascade._declare_level

    async def slowly(*arguments: Any) -> Any:
        await asyncio.sleep(0.05)
        return await declare(*arguments)

    monkeypatch.setattr(cascade, "_declare_level", slowly)
    async with (
        staged("rabbitmq", vhost) as stage,
        stage.hosting(waiting(log)),
        staged("rabbitmq", vhost, publish_timeout=0.8) as hasty,
        asyncio.timeout(20),
    ):
        while not log:
            try:
                await hasty.bus.publish(Placed(number=1), delay=0.1)
                await log.reaches(1)
            except BusUnavailable:
                pass


async def test_p6_namespaces_have_a_cascade_each(vhost: str) -> None:
    log: Log[tuple[str, Message]] = Log()

    def service(name: str) -> Service:
        service = Service("late")

        @service.on("#")
        async def late(message: Message) -> None:
            log.append((name, message))

        return service

    async with (
        staged("rabbitmq", vhost, namespace="blue") as blue,
        staged("rabbitmq", vhost, namespace="green") as green,
        blue.hosting(service("blue")),
        green.hosting(service("green")),
    ):
        await blue.bus.publish(Placed(number=1), delay=0.3)
        await green.bus.publish(Shipped(number=2), delay=0.2)
        await blue.bus.publish(Placed(number=3), delay=0.1, to="blue.late.late")
        await log.reaches(3)
    seen = sorted((name, message.type) for name, message in log)
    assert seen == [("blue", "order.placed"), ("blue", "order.placed"), ("green", "order.shipped")]


def allowed(broker: Shared, vhost: str, user: str, configure: str, write: str, read: str) -> str:
    """Make a user with these rights and return the URL that it uses."""
    broker.node.ctl("add_user", user, "secret")
    broker.node.ctl("set_permissions", "-p", vhost, user, configure, write, read)
    return broker.node.url(vhost).replace("guest:guest", f"{user}:secret")


async def test_p6_without_the_right_to_configure_a_missing_cascade_is_one_clear_line(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    user = f"plain-{vhost_name}"
    url = await asyncio.to_thread(allowed, broker, vhost_name, user, "", ".*", ".*")
    log: Log[tuple[int, float]] = Log()
    async with rabbitmq.hosting(waiting(log)), staged("rabbitmq", url) as plain:
        with pytest.raises(PublishRefused) as raised:
            await plain.bus.publish(Placed(), id="mine", delay=1)
        assert raised.value.fates == {"mine": Fate.REFUSED}
        told = str(raised.value)
        assert user in told and "who may configure 'delay.*'" in told and "\n" not in told
        await rabbitmq.bus.publish(Placed(number=1), delay=0.1)
        await plain.bus.publish(Placed(number=2), delay=0.1)
        await plain.bus.publish(Placed(number=3), delay=0.1, to="late.late")
        await log.reaches(3)


async def test_p6_a_user_who_may_only_write_events_is_told_what_is_missing(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    user = f"events-{vhost_name}"
    url = await asyncio.to_thread(allowed, broker, vhost_name, user, "^events$", "^events$", "^$")
    log: Log[tuple[int, float]] = Log()
    async with rabbitmq.hosting(waiting(log)), staged("rabbitmq", url) as plain:
        await rabbitmq.bus.publish(Placed(number=1), delay=0.1)
        for options in ({}, {"to": "late.late"}):
            with pytest.raises(PublishRefused, match=r"access to .* refused for user") as raised:
                await plain.bus.publish(Placed(), id="mine", delay=1, **options)
            assert raised.value.fates == {"mine": Fate.REFUSED}
            assert "\n" not in str(raised.value)
        await plain.bus.publish(Placed(number=2))
        await log.reaches(2)


async def test_p6_retry_after_without_the_right_to_configure_waits_for_the_cascade_and_says_so(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("patient")

    @service.on(Placed, retry=fixed(3, 5))
    async def work(placed: Placed, context: Context) -> None:
        log.append(context.attempt)
        if context.attempt == 1:
            raise RetryAfter(0.15)

    write = r"^(events|delay\..*|patient\..*)$"
    read = r"^(patient\..*|delay\.return|delay\.unroutable)$"
    url = await asyncio.to_thread(allowed, broker, vhost_name, f"worker-{vhost_name}", "", write, read)
    await rabbitmq.declare(service)
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", url) as plain, plain.hosting(service):
            await rabbitmq.bus.publish(Placed())
            await log.reaches(1)
            async with asyncio.timeout(20):
                while not any(entry["event"] == "settling waits" for entry in logs):
                    await asyncio.sleep(0.05)
            await rabbitmq.bus.publish(Shipped(), delay=0.1)
            await log.reaches(2)
    told = [entry for entry in logs if entry["event"] == "settling waits"]
    assert len(told) == 1
    assert told[0]["subscription"] == "patient.work"
    assert "who may configure 'delay.*'" in told[0]["error"]
    assert log == [1, 2]


async def test_p6_a_delay_waits_for_its_broker_within_the_timeout(proxy: Proxy, vhost_name: str) -> None:
    log: Log[tuple[int, float]] = Log()
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=1) as stage, stage.hosting(waiting(log)):
        for fault in (lambda: proxy.refuse(True), lambda: proxy.blackhole(up=True, down=True)):
            fault()
            proxy.drop()
            began = time.monotonic()
            with pytest.raises(BusUnavailable) as raised:
                await stage.bus.publish(Placed(number=0), id="mine", delay=0.1)
            assert raised.value.fates == {"mine": Fate.UNKNOWN}
            assert time.monotonic() - began < 8
            proxy.refuse(False)
            proxy.blackhole(up=False, down=False)
    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, stage.hosting(waiting(log)):
        proxy.refuse(True)
        proxy.drop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.bus.publish(Placed(number=1), delay=0.1))
            await asyncio.sleep(0.5)
            proxy.refuse(False)
        await log.holds(lambda seen: any(number == 1 for number, _ in seen), "the delayed one")
