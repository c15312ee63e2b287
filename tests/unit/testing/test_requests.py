"""Requests on a Tester: the service under test answers, or asks, and no time is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bus import Bus, Context, Event, Reject, RequestFailed, RequestTimeout, Service, Unroutable, connect, fixed
from bus.testing import NotSettled, Tester
from bus.testing.faults import Fault
from bus.testing.simulation import Ran, _run


class Asked(Event, type="quote.asked"):
    number: int = 0


class Quoted(Event, type="quote.given"):
    number: int


class Ordered(Event, type="order.placed"):
    number: int


def quotes() -> Service:
    service = Service("quotes")

    @service.on(Asked, retry=fixed(3, timedelta(hours=6)))
    async def quote(asked: Asked, context: Context) -> Quoted | None:
        if asked.number < 0:
            raise Reject("no such product")
        if asked.number > 100 and context.attempt < 3:
            raise ConnectionError("not yet")
        return Quoted(number=asked.number) if asked.number else None

    return service


async def test_a_request_returns_its_answer_without_settled() -> None:
    async with Tester(quotes()) as bus:
        assert await bus.request(Asked(number=7), Quoted, timeout=2) == Quoted(number=7)
        assert bus.published(Asked) == [Asked(number=7)]
        assert bus.published(Quoted) == [Quoted(number=7)]


async def test_retries_of_hours_and_a_timeout_of_days_take_no_time() -> None:
    started = time.monotonic()
    async with Tester(quotes()) as bus:
        assert await bus.request(Asked(number=101), Quoted, timeout=timedelta(days=1)) == Quoted(number=101)
        with pytest.raises(RequestTimeout, match=r"no quote.given came within 259200 s"):
            await bus.request(Asked(number=0), Quoted, timeout=timedelta(days=3))
        with pytest.raises(RequestTimeout):
            await bus.request(Asked(number=102), Quoted, timeout=timedelta(hours=11))
        await bus.settled()
        assert bus.dropped_replies == 1
    assert time.monotonic() - started < 5


async def test_failures_are_told_as_on_any_bus() -> None:
    async with Tester(quotes()) as bus:
        with pytest.raises(RequestFailed, match=r"quotes.quote: rejected: Reject: no such product"):
            await bus.request(Asked(number=-1), Quoted, timeout=2)
        with pytest.raises(Unroutable):
            await bus.request(Quoted(number=1), Asked, timeout=2)
        [letter] = bus.dead_letters()
        assert letter.failure.reason == "rejected"


async def test_a_handler_that_asks_is_tested_with_who_answers() -> None:
    shop = Service("shop")
    prices: list[int] = []

    @shop.resource
    async def production() -> AsyncIterator[Bus]:
        async with connect("amqp://nowhere/") as bus:
            yield bus

    @shop.on(Ordered)
    async def order(ordered: Ordered, bus: Bus) -> None:
        prices.append((await bus.request(Asked(number=ordered.number), Quoted, timeout=5)).number)

    async with Tester(quotes(), shop) as bus:
        await bus.publish(Ordered(number=7), Ordered(number=8))
        await bus.settled()
        assert bus.dead_letters() == []
    assert sorted(prices) == [7, 8]


async def test_a_request_lets_no_more_time_pass_than_whoever_else_waits() -> None:
    async with Tester(quotes()) as bus:
        loop = asyncio.get_running_loop()
        asking = asyncio.create_task(bus.request(Asked(number=101), Quoted, timeout=timedelta(days=1)))
        await asyncio.sleep(0)
        started = loop.time()
        await bus.advance(60)
        assert 60 <= loop.time() - started < 61
        assert await asking == Quoted(number=101)
        assert loop.time() - started > 12 * 3600


def asking() -> tuple[Service, Service]:
    """Return a service whose handler asks, and one that answers late."""
    shop, slow = Service("shop"), Service("slow")

    @shop.resource
    async def production() -> AsyncIterator[Bus]:
        async with connect("amqp://nowhere/") as bus:
            yield bus

    @shop.on(Ordered, retry=fixed(1, 1))
    async def order(ordered: Ordered, bus: Bus) -> None:
        await bus.request(Asked(number=ordered.number), Quoted, timeout=60)

    @slow.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        await asyncio.sleep(30)
        return Quoted(number=asked.number)

    return shop, slow


async def test_time_stands_again_after_a_crash_while_a_handler_asked() -> None:
    async with Tester(*asking()) as bus:
        await bus.publish(Ordered(number=7))
        await bus.advance(10)
        assert bus.published(Asked)
        await bus.crash()
        await bus.settled()
        await bus.publish(Asked(number=8), delay=timedelta(days=1))
        await asyncio.to_thread(time.sleep, 0.05)
        assert "delayed or waiting for a retry" in bus.transport.waiting()


def test_a_scenario_is_cut_off_after_a_crash_while_a_handler_asked() -> None:
    async def waits_for_ever(bus: Tester) -> None:
        await bus.publish(Ordered(number=7))
        await asyncio.Event().wait()

    def crashed(at: int) -> Ran:
        return _run(lambda: Tester(*asking()), waits_for_ever, 0, [Fault("crash", at)])

    runs = (crashed(at) for at in range(1, 30))
    ran = next(ran for ran in runs if any("while it ran shop.order" in line for line in ran.story.lines()))
    assert "the scenario waits for what does not come" in str(ran.error)


async def test_a_request_gives_up_after_real_seconds_and_says_who_keeps_it_and_why() -> None:
    service = Service("quotes")

    @service.on(Asked, timeout=2, retry=fixed(1, 1))
    async def hangs(asked: Asked) -> Quoted:
        await asyncio.Event().wait()
        return Quoted(number=1)

    idle = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with idle, Tester(service) as bus:
        with pytest.raises(NotSettled) as raised:
            await bus.request(Asked(), Quoted, timeout=3600, within=0.1)
        told = str(raised.value)
        assert told.startswith("request(Asked) has not come to its end:\n  the clock stands because 1 socket(s)")
        assert "running: quotes.hangs (" in told
        with pytest.raises(RequestTimeout):
            await bus.request(Asked(), Quoted, timeout=0.05, within=5)
