"""F: failure; dead letters and their replay are in test_dead_letters.py."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise

import aio_pika
import pytest

from bus import Context, Message, Policy, RetryAfter, Service, exponential, fixed, immediate
from tests.broker.fixtures import Shared
from tests.broker.node import Node

from .stage import WITHIN, Log, Placed, Stage, staged, told


async def test_f1_only_the_handler_that_failed_sees_the_message_again_and_never_early(stage: Stage) -> None:
    failing: Log[tuple[int, float]] = Log()
    fine: Log[int] = Log()
    loop = asyncio.get_running_loop()
    service, neighbour = Service("failing"), Service("fine")

    @service.on(Placed, retry=fixed(3, 0.4))
    async def fail(placed: Placed, context: Context) -> None:
        failing.append((context.attempt, loop.time()))
        if context.attempt < 3:
            raise ValueError("not yet")

    @service.on(Placed, name="beside")
    async def beside(placed: Placed) -> None:
        fine.append(1)

    @neighbour.on(Placed)
    async def elsewhere(placed: Placed) -> None:
        fine.append(2)

    async with stage.hosting(service, neighbour):
        await stage.bus.publish(Placed())
        await failing.reaches(3)
    assert [attempt for attempt, _ in failing] == [1, 2, 3]
    assert all(later - earlier >= 0.4 for (_, earlier), (_, later) in pairwise(failing))
    assert sorted(fine) == [1, 2]


async def test_f1_a_retry_outlives_its_worker(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    attempts: Log[int] = Log()
    service = Service("failing")

    @service.on(Placed, retry=fixed(3, 0.3))
    async def fail(placed: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise ValueError

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(Placed())
        await told(caplog, "event=retry")
        await hosted.die()
    async with stage.hosting(service):
        await attempts.reaches(2)
    assert attempts == [1, 2]


async def test_f1_a_failing_handler_does_not_delay_its_neighbours(stage: Stage) -> None:
    fine: Log[int] = Log()
    service = Service("both", concurrency=2)

    @service.on(Placed, name="fails", retry=fixed(2, 30))
    async def fails(placed: Placed) -> None:
        raise ValueError

    @service.on(Placed, name="works")
    async def works(placed: Placed) -> None:
        fine.append(placed.number)

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(50)))
        await fine.reaches(50)


async def test_f1_retry_after_is_as_late_as_it_says(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    loop = asyncio.get_running_loop()
    service = Service("patient")

    @service.on(Placed, retry=fixed(3, 60))
    async def ask(placed: Placed, context: Context) -> None:
        log.append((context.attempt, loop.time()))
        if context.attempt == 1:
            raise RetryAfter(0.35)

    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        await log.reaches(2)
    assert [attempt for attempt, _ in log] == [1, 2]
    assert log[1][1] - log[0][1] >= 0.35  # and it came, which it would not have by the policy


async def test_f2_attempt_and_first_failure_travel_with_the_message(stage: Stage) -> None:
    log: Log[tuple[int, datetime | None]] = Log()
    service = Service("failing")

    @service.on(Placed, retry=immediate(3))
    async def fail(placed: Placed, context: Context) -> None:
        log.append((context.attempt, context.first_failed_at))
        raise ValueError

    before = datetime.now(UTC)
    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("failing")
    assert [attempt for attempt, _ in log] == [1, 2, 3]
    (_, none), (_, first), (_, second) = log
    assert none is None
    assert first == second == letter.failure.first_failed_at
    assert before <= letter.failure.first_failed_at <= letter.failure.last_failed_at
    assert letter.failure.attempts == 3


async def test_f2_a_death_raises_redelivered_and_not_the_attempt(stage: Stage) -> None:
    log: Log[tuple[int, int]] = Log()
    service = Service("mortal")

    def watch(handler: object, process: object) -> object:
        async def watched(delivery: object) -> object:
            log.append((delivery.attempt, delivery.redelivered))  # type: ignore[attr-defined]
            return await process(delivery)  # type: ignore[operator]

        return watched

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        if len(log) == 1:
            await asyncio.Event().wait()

    async with stage.hosting(service, middleware=[watch]) as hosted:  # type: ignore[list-item]
        await stage.bus.publish(Placed())
        await log.reaches(1)
        await hosted.die()
    async with stage.hosting(service, middleware=[watch]):  # type: ignore[list-item]
        await log.reaches(2)
    assert log == [(1, 0), (1, 1)]


async def test_f2_forged_values_are_harmless(rabbitmq: Stage) -> None:
    log: Log[tuple[int, datetime | None, int]] = Log()
    service = Service("wary")

    @service.on("order.placed")
    async def work(message: Message, context: Context) -> None:
        log.append((context.attempt, context.first_failed_at, message.hops))

    forged = {"tidegate-attempt": 99, "tidegate-first-failed-at": "1999-01-01T00:00:00Z", "tidegate-hops": -5}
    async with rabbitmq.hosting(service):
        await rabbitmq.raw("order.placed", b"{}", forged)
        await log.reaches(1)
    assert log == [(1, None, 0)]


async def test_f3_a_retry_carries_the_original_body_and_headers(stage: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("failing")

    @service.on("order.placed", retry=fixed(3, 0.1))
    async def fail(message: Message, context: Context) -> None:
        log.append(message)
        if context.attempt < 3:
            raise ValueError

    async with stage.hosting(service):
        await stage.bus.publish(Placed(number=4, note="ü"), headers={"tenant": "blue", "nul": "\x00"})
        await log.reaches(3)
    assert log[0] == log[1] == log[2]
    assert dict(log[2].headers) == {"tenant": "blue", "nul": "\x00"}


@pytest.mark.parametrize("delay", [0, 0.6, 0.75], ids=["at once", "by the ladder", "by the cascade"])
async def test_f3_a_retry_of_a_foreign_message_keeps_what_would_break_it_aside(rabbitmq: Stage, delay: float) -> None:
    log: Log[tuple[str, Message, float]] = Log()
    loop = asyncio.get_running_loop()
    service = Service("wary")

    @service.on("order.placed", name="work", retry=fixed(3, 0.6))
    async def work(message: Message, context: Context) -> None:
        log.append(("work", message, loop.time()))
        if context.attempt == 1:
            raise RetryAfter(delay)

    @service.on("never")
    async def other(message: Message) -> None:
        log.append(("other", message, loop.time()))

    headers = {"x-custom": "kept", "x-death": "forged", "plain": 7, "nested": {"a": [1, 2]}}
    async with rabbitmq.hosting(service) as hosted:
        await hosted.consumes()
        async with asyncio.timeout(WITHIN):
            # on a busy machine it expires where it waits
            while not log:
                await rabbitmq.raw("order.placed", b"body", headers, expiration=0.4, user_id="guest", message_id="m")
                with suppress(AssertionError):
                    await log.holds(bool, "the first", 3)
        await log.reaches(2)
        await asyncio.sleep(0.05)
    (_, first, began), (_, second, again) = log
    assert [who for who, _, _ in log] == ["work", "work"]
    assert again - began >= delay
    assert (second.id, second.type, second.body) == (first.id, first.type, first.body) == ("m", "order.placed", b"body")
    assert second.headers["x-custom"] == "kept"
    assert second.headers["plain"] == first.headers["plain"] == "7"


async def test_f6_while_the_broker_refuses_the_copy_the_handler_is_not_run_again(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: Log[int] = Log()
    service = Service("refused")

    @service.on(Placed, retry=fixed(3, 600))
    async def fail(placed: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    async def stored() -> dict[str, int]:
        async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
            names = ("refused.fail", "refused.retry.600000")
            queues = {name: await channel.declare_queue(name, passive=True) for name in names}
            return {name: queue.declaration_result.message_count or 0 for name, queue in queues.items()}

    await rabbitmq.declare(service)
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        for _ in range(2):  # what fills the queue, so that it takes no more
            await channel.default_exchange.publish(aio_pika.Message(b"x", delivery_mode=2), "refused.retry.600000")
    full = '{"max-length": 1, "overflow": "reject-publish"}'
    policy = ("set_policy", "-p", vhost_name, "full", r"refused\.retry\..*", full, "--apply-to", "queues")
    await asyncio.to_thread(broker.node.ctl, *policy)
    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(Placed())
        async with asyncio.timeout(20):
            while "settling waits" not in caplog.text:  # a publish is refused for good after five seconds
                await asyncio.sleep(0.1)
        assert attempts == [1]
        assert (await stored())["refused.retry.600000"] == 2
        await asyncio.to_thread(broker.node.ctl, "clear_policy", "-p", vhost_name, "full")
        async with asyncio.timeout(20):
            while (await stored())["refused.retry.600000"] < 3:
                await asyncio.sleep(0.1)
    assert attempts == [1]
    assert (await stored())["refused.fail"] == 0


async def test_f1_a_retry_outlives_the_broker(own_broker: Node, caplog: pytest.LogCaptureFixture) -> None:
    attempts: Log[tuple[int, float]] = Log()
    service = Service("failing")

    @service.on(Placed, retry=fixed(3, 3))
    async def fail(placed: Placed, context: Context) -> None:
        attempts.append((context.attempt, time.monotonic()))
        if context.attempt == 1:
            raise ValueError

    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage, stage.hosting(service):
        await asyncio.to_thread(own_broker.keep)
        await stage.bus.publish(Placed())
        await told(caplog, "event=retry")
        await asyncio.to_thread(own_broker.kill)
        await asyncio.to_thread(own_broker.start)
        await attempts.holds(each_again, "each first attempt tried again")
    times = dict(reversed(attempts))
    assert times[2] - times[1] >= 3


def each_again(attempts: list[tuple[int, float]]) -> bool:
    """Tell whether each first attempt was followed by a second: a broker may die before it stores an ack."""
    numbers = [number for number, _ in attempts]
    return numbers.count(2) == numbers.count(1) > 0


async def test_f2_attempts_are_counted_across_replicas(stage: Stage) -> None:
    attempts: dict[int, list[int]] = {}
    service = Service("failing", concurrency=2)

    @service.on(Placed, retry=immediate(4))
    async def fail(placed: Placed, context: Context) -> None:
        attempts.setdefault(placed.number, []).append(context.attempt)
        raise ValueError

    async with stage.hosting(service), stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        await stage.letters("failing", 20)
    assert attempts == {number: [1, 2, 3, 4] for number in range(20)}


DELETED = {
    "the retries' exchange": ("exchange", "shop.retry", fixed(2, 0.2)),
    "the queue of a step": ("queue", "shop.retry.200", fixed(2, 0.2)),
    "the exchange of the way back": ("exchange", "shop.return", immediate(2)),
    "the dead letters' exchange": ("exchange", "shop.dead", immediate(1)),
    "the dead letters' stream": ("queue", "shop.dead", immediate(1)),
}


@pytest.mark.parametrize(("kind", "name", "policy"), DELETED.values(), ids=DELETED.keys())
async def test_f6_a_copy_whose_way_was_deleted_is_stored_once_it_is_there_again(
    rabbitmq: Stage, kind: str, name: str, policy: Policy
) -> None:
    attempts: Log[int] = Log()
    service = Service("shop")

    @service.on(Placed, retry=policy)
    async def fail(placed: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        raise ValueError

    async with rabbitmq.hosting(service):
        async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
            await (channel.exchange_delete if kind == "exchange" else channel.queue_delete)(name)
        await rabbitmq.bus.publish(Placed())
        (letter,) = await rabbitmq.letters("shop")
    assert attempts == list(range(1, policy.attempts + 1))
    assert letter.failure.attempts == policy.attempts


async def test_f8_an_async_handler_past_its_timeout_is_cancelled_and_has_failed(stage: Stage) -> None:
    cleaned: Log[int] = Log()
    service = Service("slow")

    @service.on(Placed, timeout=0.1, retry=immediate(2))
    async def slow(placed: Placed) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append(1)

    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("slow")
    assert (letter.failure.error_type, letter.failure.attempts, cleaned) == ("TimeoutError", 2, [1, 1])


async def test_f8_a_plain_function_past_its_timeout_is_settled_when_it_returns_and_never_runs_beside_itself(
    stage: Stage,
) -> None:
    running, most = 0, 0
    lock = threading.Lock()
    service = Service("slow")

    @service.on(Placed, timeout=0.05, retry=immediate(2))
    def slow(placed: Placed) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.25)
        with lock:
            running -= 1

    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("slow")
    assert (letter.failure.error_type, letter.failure.attempts, most) == ("TimeoutError", 2, 1)


async def test_f8_a_task_that_is_cancelled_from_inside_has_failed_and_what_comes_later_is_handled(stage: Stage) -> None:
    log: Log[int] = Log()
    service = Service("shop", concurrency=2)

    @service.on(Placed, retry=immediate(2))
    async def work(placed: Placed) -> None:
        task = asyncio.current_task()
        assert task is not None
        if placed.number < 8:
            # as a library does that ends its own wait so, and never takes that back
            asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                return
        log.append(placed.number)

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        letters = await stage.letters("shop", 8)
        await log.reaches(12)
    assert sorted(log) == list(range(8, 20))
    assert {letter.failure.attempts for letter in letters} == {2}
    assert all("cancelled from inside" in letter.failure.error for letter in letters)


async def test_f8_a_shutdown_is_neither_failure_nor_success(stage: Stage) -> None:
    log: Log[tuple[int, int]] = Log()
    service = Service("slow")

    @service.on(Placed, retry=exponential())
    async def slow(placed: Placed, context: Context) -> None:
        log.append((placed.number, context.attempt))
        if len(log) == 1:
            await asyncio.sleep(30)

    async with stage.hosting(service, grace=0.1) as hosted:
        await stage.bus.publish(Placed(number=1))
        await log.reaches(1)
        await hosted.stop()
    assert [letter async for letter in stage.transport.dead_letters.browse("slow")] == []
    async with stage.hosting(service):
        await log.reaches(2)
    assert log == [(1, 1), (1, 1)]
