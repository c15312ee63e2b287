"""F9: old and new version of a service side by side, on the same queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import orjson
import pytest
import structlog

from bus import Context, Event, Handler, Message, Middleware, Outcome, Process, Retry, RetryAfter, Service, fixed
from bus.service import Subscribe
from bus.transport import Delivery

from .stage import Hosted, Log, Stage


class OldOrder(Event, type="order.placed"):
    number: int


class Order(Event, type="order.placed", version=2):
    number: int
    currency: str


@Order.upcast(1)
def in_euro(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"currency": "EUR"}


class Refund(Event, type="order.refunded"):
    number: int


Seen = Log[tuple[str, str, int]]
"""Which version and handler saw which number."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the waits for another version be short: what is looked at again every ten seconds takes a test too long."""
    monkeypatch.setattr("bus.service.DEPLOY_STEP", timedelta(seconds=0.3))


def number_of(message: Message) -> int:
    return int(orjson.loads(message.body)["number"])


def service(seen: Seen, version: str, *orders: Any, audited: str) -> Service:
    """Return one version of the service: what it handles by class, and by pattern."""
    made = Service("sales", concurrency=4)
    subscribe: Subscribe[Any] = made.on(*orders, name="take")

    @subscribe
    async def take(event: Any) -> None:
        if isinstance(event, Order):
            assert event.currency in ("EUR", "SEK")
        seen.append((version, "take", event.number))

    @made.on(audited)
    async def audit(message: Message) -> None:
        seen.append((version, "audit", number_of(message)))

    return made


def old(seen: Seen) -> Service:
    return service(seen, "old", OldOrder, audited="order.placed")


def new(seen: Seen) -> Service:
    return service(seen, "new", Order, Refund, audited="order.#")


@asynccontextmanager
async def publishing(stage: Stage, *make: Callable[[int], Event], first: int) -> AsyncIterator[dict[int, str]]:
    """Publish events of each kind in turns meanwhile; yields the type of each number."""
    sent: dict[int, str] = {}
    over = asyncio.Event()

    async def publish() -> None:
        while not over.is_set():
            event = make[len(sent) % len(make)](first + len(sent))
            await stage.bus.publish(event)
            sent[first + len(sent)] = f"{event.__schema__.type} {event.__schema__.version}"
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        yield sent
        over.set()


async def rolled(stage: Stage, seen: Seen, before: Service, after: Service, **options: Any) -> AsyncExitStack:
    """Host two replicas of one version and replace them by the other one by one; closing the stack stops those.

    There is traffic in each phase.
    """
    async with AsyncExitStack() as stack:
        running: list[Hosted] = [await stack.enter_async_context(stage.hosting(before, **options)) for _ in range(2)]
        await seen.reaches(len(seen) + 40)
        for hosted in running:
            await stack.enter_async_context(stage.hosting(after, **options))
            await seen.reaches(len(seen) + 40)
            await hosted.stop()
        await seen.reaches(len(seen) + 40)
        return stack.pop_all()


async def handled(seen: Seen, numbers: Iterable[int]) -> None:
    """Wait until both handlers saw every one of the numbers."""
    wanted = {(handler, number) for handler in ("take", "audit") for number in numbers}
    await seen.holds(lambda log: {(handler, number) for _, handler, number in log} >= wanted, f"{len(wanted)} runs")


async def test_f9_a_roll_to_a_version_that_knows_more_loses_nothing_and_fills_no_dead_letters(stage: Stage) -> None:
    seen: Seen = Log()
    await stage.declare(new(seen))  # the first new worker does, before it consumes: the worst case for the old ones
    orders = (
        lambda number: OldOrder(number=number),
        lambda number: Order(number=number, currency="SEK"),
        lambda number: Refund(number=number),
    )
    async with publishing(stage, *orders, first=0) as sent:
        stack = await rolled(stage, seen, old(seen), new(seen))
    async with stack:
        await handled(seen, sent)
    assert [letter async for letter in stage.transport.dead_letters.browse("sales")] == []
    by_old = {(handler, sent[number]) for version, handler, number in seen if version == "old"}
    # the old one took nothing that it could not read, nor what it never subscribed to
    assert by_old == {("take", "order.placed 1"), ("audit", "order.placed 1"), ("audit", "order.placed 2")}
    assert set(Counter((handler, number) for _, handler, number in seen).values()) == {1}


async def test_f9_a_roll_to_a_version_that_wants_less_takes_what_is_left_as_stale(stage: Stage) -> None:
    seen: Seen = Log()
    hosted: set[Handler] = set()

    def remember(handler: Handler, process: Process) -> Process:
        hosted.add(handler)
        return process

    orders = (lambda number: Order(number=number, currency="SEK"), lambda number: Refund(number=number))
    options = {"middleware": [remember], "deploy_grace": 1.0}
    less = service(seen, "less", Order, audited="order.placed")
    await stage.declare(new(seen))
    with structlog.testing.capture_logs() as logs:
        async with publishing(stage, *orders, first=0) as sent:
            stack = await rolled(stage, seen, new(seen), less, **options)
        async with stack:
            wanted = {n for n, kind in sent.items() if kind == "order.placed 2"}
            await handled(seen, wanted)
            refused = len(sent) - len(wanted)

            def settled() -> int:
                stale = sum(handler.flow.counts["stale"] for handler in hosted)
                return stale + sum(version == "new" and number not in wanted for version, _, number in seen)

            async with asyncio.timeout(20):
                while settled() < 2 * refused:
                    await asyncio.sleep(0.1)
    assert settled() == 2 * refused
    assert [letter async for letter in stage.transport.dead_letters.browse("sales")] == []
    assert {kind for version, _, number in seen if version == "less" for kind in [sent[number]]} == {"order.placed 2"}
    told = Counter((entry["handler"], entry["routing_key"]) for entry in logs if entry["event"] == "stale binding")
    assert set(told) == {("take", "order.refunded"), ("audit", "order.refunded")}
    assert max(told.values()) <= 2  # once in each of the two workers


async def test_f9_what_a_newer_version_failed_at_long_ago_is_not_given_up_by_an_older_one(stage: Stage) -> None:
    attempts: Log[int] = Log()
    looked: Log[Outcome] = Log()
    newer = Service("sales")

    @newer.on(OldOrder, Refund, name="take", retry=fixed(5, 60))
    async def take(event: OldOrder | Refund, context: Context) -> None:
        attempts.append(context.attempt)
        if context.attempt == 1:
            raise RetryAfter(1.2)

    def watch(handler: Handler, process: Process) -> Process:
        async def watched(delivery: Delivery) -> Outcome:
            outcome = await process(delivery)
            looked.append(outcome)
            return outcome

        return watched

    middleware: list[Middleware] = [watch]
    older = Service("sales")
    older.on(OldOrder, name="take")(take)
    async with stage.hosting(newer, deploy_grace=1) as first:
        await stage.bus.publish(Refund(number=1))
        await attempts.reaches(1)
        await first.stop()
    async with stage.hosting(older, deploy_grace=1, middleware=middleware) as second:
        await looked.reaches(1)
        await second.stop()  # however long the newer one takes to start, nobody looks meanwhile
    async with stage.hosting(newer, deploy_grace=1):
        await attempts.reaches(2)
    assert isinstance(looked[0], Retry)
    assert attempts == [1, 2]
    assert [letter async for letter in stage.transport.dead_letters.browse("sales")] == []


async def test_f9_what_is_sent_to_one_queue_alone_is_never_stale(stage: Stage) -> None:
    seen: Seen = Log()
    async with stage.hosting(service(seen, "old", OldOrder, audited="order.placed"), deploy_grace=0.1):
        await stage.bus.publish(Refund(number=1), to="sales.audit")
        await stage.bus.publish(Refund(number=2), to="sales.audit", delay=0.1)
        await seen.reaches(2)
        await stage.bus.publish(Refund(number=3), to="sales.take")
        (letter,) = await stage.letters("sales")
    assert sorted(seen) == [("old", "audit", 1), ("old", "audit", 2)]
    assert letter.failure.reason == "unknown-type"


async def test_f9_a_message_that_names_further_keys_is_never_stale(rabbitmq: Stage) -> None:
    seen: Log[bytes] = Log()
    narrow = Service("sales")

    @narrow.on("order.placed")
    async def audit(message: Message) -> None:
        seen.append(message.body)

    async with rabbitmq.hosting(narrow, deploy_grace=0.1):
        await rabbitmq.raw("legacy", b"by another key", {"CC": ["order.placed"]})
        await seen.reaches(1)
