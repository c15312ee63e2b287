"""The breaker, in virtual time: when it opens, what it tries, when it closes, and what it does not count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import (
    ConfigurationError,
    Delivery,
    Event,
    Handler,
    Message,
    Outcome,
    Process,
    Reject,
    RetryAfter,
    Service,
    Settings,
    SqliteStore,
    Store,
    breaker,
    fixed,
    immediate,
)
from bus.message import Outgoing
from bus.testing import Tester


class Placed(Event, type="order.placed"):
    number: int = 0


class Shop:
    """A service whose handler does as it is told, and when it ran."""

    def __init__(self, *, retry: Any = None, concurrency: int = 1, timeout: float = 60, **options: Any) -> None:
        self.service = Service("shop", concurrency=concurrency, middleware=[breaker(**options)])
        self.behave: Callable[[Placed], Any] = self.fail
        self.runs: list[tuple[float, int]] = []
        self.service.on(Placed, retry=retry or fixed(9, 1000), timeout=timeout)(self.work)

    async def work(self, placed: Placed) -> None:
        self.runs.append((asyncio.get_running_loop().time(), placed.number))
        if asyncio.iscoroutine(result := self.behave(placed)):
            await result

    def fail(self, placed: Placed) -> None:
        raise ConnectionError("the warehouse is down")

    def times(self, since: float) -> list[int]:
        """Return when it ran, in whole seconds."""
        return [round(at - since) for at, _ in self.runs]


def now() -> float:
    return asyncio.get_running_loop().time()


def orders(size: int) -> list[Placed]:
    return [Placed(number=number) for number in range(size)]


def fine(placed: Placed) -> None: ...


def reject(placed: Placed) -> None:
    raise Reject("this one can never succeed")


def message(**changed: Any) -> Message:
    """Return a message as other code would have published it."""
    given = {"id": "m", "type": "order.placed", "version": 1, "source": "/other", "body": b"{}"} | changed
    return Message(time=datetime.now(UTC), **given)


async def test_after_so_many_failures_nothing_runs_until_the_cool_down_and_then_one_at_a_time() -> None:
    shop = Shop(failures=3, cool_down=10)
    async with Tester(shop.service) as bus:
        began = now()
        await bus.publish(*orders(20))
        await bus.advance(35)
        assert shop.times(began) == [0, 0, 0, 10, 20, 30]


async def test_a_success_of_the_one_that_was_tried_closes_it() -> None:
    shop = Shop(failures=3, cool_down=10)
    async with Tester(shop.service) as bus:
        began = now()
        await bus.publish(*orders(20))
        await bus.advance(5)
        shop.behave = fine
        await bus.advance(6)
        assert shop.times(began) == [0] * 3 + [10] * 17


async def test_what_was_completed_before_and_is_not_run_neither_resets_the_count_nor_closes_it() -> None:
    runs: list[int] = []
    service = Service("shop", concurrency=1, middleware=[breaker(failures=3, cool_down=10)])

    @service.on(Placed, idempotent=True, retry=immediate(1))
    async def work(placed: Placed) -> None:
        runs.append(placed.number)
        if placed.number:
            raise ConnectionError("the warehouse is down")

    async with Tester(service, resources={Store: SqliteStore(":memory:")}) as bus:
        await bus.publish(Placed(number=0), id="done")
        await bus.settled()
        for number in range(1, 20):
            await bus.publish(Placed(number=number))
            await bus.publish(Placed(number=0), id="done")
        await bus.advance(5)
        assert runs == [0, 1, 2, 3]
        await bus.advance(10)  # a duplicate is tried first, and another message then
        assert runs == [0, 1, 2, 3, 4]


async def test_settled_waits_for_the_backlog_of_an_open_breaker_and_ends() -> None:
    shop = Shop(failures=2, cool_down=timedelta(minutes=30), retry=immediate(1))
    async with Tester(shop.service) as bus:
        await bus.publish(*orders(7))
        await bus.settled()
        assert len(bus.dead_letters()) == 7
        assert len(shop.runs) == 7


async def test_what_began_before_it_opened_says_nothing_of_now() -> None:
    shop = Shop(failures=2, cool_down=10, concurrency=8)
    async with Tester(shop.service) as bus:
        began = now()

        async def slow_or_failing(placed: Placed) -> None:
            if placed.number:
                raise ConnectionError
            await asyncio.sleep(5)  # and then it succeeds: an old success must not close it

        shop.behave = slow_or_failing
        await bus.publish(*orders(20))
        await bus.advance(9)
        assert shop.times(began) == [0, 0, 0]


async def test_a_late_failure_of_an_old_run_does_not_open_it_again() -> None:
    shop = Shop(failures=2, cool_down=10, concurrency=3)
    async with Tester(shop.service) as bus:
        began = now()

        async def work(placed: Placed) -> None:
            if placed.number in (1, 2):
                raise ConnectionError
            if placed.number == 0:
                await asyncio.sleep(11)
                raise ConnectionError
            await asyncio.sleep(2)

        shop.behave = work
        await bus.publish(*orders(4))
        await bus.advance(14)
        assert shop.times(began) == [0, 0, 0, 10]  # the one that was tried succeeds at 12, the old one fails at 11
        await bus.publish(Placed(number=9), Placed(number=10))
        await bus.advance(1)
        assert shop.times(began)[4:] == [14, 14]


async def test_successes_in_between_reset_the_count() -> None:
    shop = Shop(failures=2, cool_down=1000, retry=immediate(1))
    async with Tester(shop.service) as bus:
        shop.behave = lambda placed: shop.fail(placed) if placed.number % 2 else None
        await bus.publish(*orders(20))
        await bus.advance(1)
        assert len(shop.runs) == 20


async def test_failures_that_are_too_far_apart_do_not_open_it() -> None:
    shop = Shop(failures=2, within=10, cool_down=1000, retry=immediate(1))
    async with Tester(shop.service) as bus:
        for _ in range(4):
            await bus.publish(Placed())
            await bus.advance(11)
        assert len(shop.runs) == 4
        await bus.publish(*orders(3))
        await bus.advance(1)
        assert len(shop.runs) == 6  # of the last three, two were near enough


async def test_what_is_rejected_says_something_of_the_message_alone() -> None:
    shop = Shop(failures=2, cool_down=1000)
    async with Tester(shop.service) as bus:
        shop.behave = reject
        await bus.publish(*orders(10))
        await bus.advance(1)
        assert len(shop.runs) == len(bus.dead_letters()) == 10


async def test_what_cannot_be_decoded_or_is_not_known_yet_does_not_count() -> None:
    shop = Shop(failures=2, cool_down=1000)
    async with Tester(shop.service, settings=Settings(deploy_grace=1)) as bus:
        shop.behave = fine
        for changed in ({"body": b"{"}, {"body": b"["}, {"version": 7}, {"version": 8}):
            await bus.transport.publish([Outgoing(message(**changed))])
        await bus.publish(*orders(6))
        await bus.settled()
        assert len(shop.runs) == 6
        assert [letter.failure.reason for letter in bus.dead_letters()] == ["undecodable"] * 2 + ["unknown-version"] * 2


async def test_a_handler_that_asks_for_another_time_has_failed() -> None:
    shop = Shop(failures=2, cool_down=1000)

    def later(placed: Placed) -> None:
        raise RetryAfter(5000, "the warehouse is closed")

    async with Tester(shop.service) as bus:
        shop.behave = later
        await bus.publish(*orders(10))
        await bus.advance(1)
        assert len(shop.runs) == 2


async def test_timeouts_are_failures() -> None:
    shop = Shop(failures=2, cool_down=1000, timeout=5)

    async def hang(placed: Placed) -> None:
        await asyncio.Event().wait()

    async with Tester(shop.service) as bus:
        shop.behave = hang
        await bus.publish(*orders(10))
        await bus.advance(60)
        assert len(shop.runs) == 2


async def test_what_a_middleware_inside_of_it_raises_is_a_failure_too() -> None:
    def broken(handler: Handler, process: Process) -> Process:
        async def run(delivery: Delivery) -> Outcome:
            raise ConnectionError("no database")

        return run

    service = Service("shop", concurrency=1, middleware=[breaker(failures=2, cool_down=10), broken])

    @service.on(Placed, retry=immediate(1))
    async def work(placed: Placed) -> None: ...

    async with Tester(service) as bus:
        await bus.publish(*orders(10))
        await bus.advance(15)
        assert len(bus.dead_letters()) == 3


async def test_each_handler_has_its_own_and_others_of_the_service_go_on() -> None:
    shop, done = Shop(failures=1, cool_down=1000), []

    @shop.service.on(Placed)
    async def other(placed: Placed) -> None:
        done.append(placed.number)

    async with Tester(shop.service) as bus:
        await bus.publish(*orders(20))
        await bus.advance(1)
        assert (len(shop.runs), len(done)) == (1, 20)


async def test_what_waits_for_a_slot_goes_back_while_those_that_run_hang() -> None:
    shop = Shop(failures=2, cool_down=1000, concurrency=4)

    async def hang_or_fail(placed: Placed) -> None:
        if placed.number in (1, 2):
            await asyncio.sleep(1)
            raise ConnectionError
        await asyncio.sleep(50)

    shop.behave = hang_or_fail
    async with Tester(shop.service) as bus:
        await bus.publish(*orders(12))
        await bus.advance(2)
        consumer = bus.transport.queues["shop.work"].consumers[0]
        assert consumer.unsettled == 3  # what runs; nothing waits unstarted
        await bus.advance(60)
        assert [number for _, number in shop.runs] == [0, 1, 2, 3, 4]  # the last took the slot of the first failure


async def test_it_says_once_that_it_is_open_and_why_and_once_that_it_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="tidegate")
    shop = Shop(failures=3, cool_down=10)
    async with Tester(shop.service) as bus:
        await bus.publish(*orders(9))
        await bus.advance(45)
        shop.behave = fine
        await bus.advance(10)
    told = [(record.levelname, record.getMessage()) for record in caplog.records if "breaker" in record.getMessage()]
    assert [level for level, _ in told] == ["WARNING", "INFO"]
    assert "breaker open" in told[0][1]
    for part in ("service=shop", "handler=work", "failures=3", "ConnectionError", "the warehouse is down"):
        assert part in told[0][1]
    assert "breaker closed" in told[1][1]


async def test_nothing_of_it_outlives_the_worker() -> None:
    shop = Shop(failures=1, cool_down=10)
    async with Tester(shop.service) as bus:
        await bus.publish(*orders(3))
        await bus.advance(1)
        flow = bus.worker.flows["shop.work"]
        assert flow.held == {"breaker": 0}
    assert flow.held == {}
    assert not flow.waits


async def test_after_a_crash_the_new_worker_begins_with_a_closed_one() -> None:
    shop = Shop(failures=1, cool_down=1000, retry=immediate(1))
    async with Tester(shop.service) as bus:
        await bus.publish(*orders(3))
        await bus.advance(1)
        assert len(shop.runs) == 1
        await bus.crash()
        await bus.advance(1)
        assert len(shop.runs) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"failures": 0}, "failures=0"),
        ({"failures": 2.5}, r"failures=2\.5"),
        ({"within": 0}, "within=0"),
        ({"within": float("inf")}, "within=inf"),
        ({"cool_down": -1}, "cool_down=-1"),
        ({"cool_down": float("nan")}, "cool_down=nan"),
        ({"cool_down": "30"}, "cool_down='30'"),
        ({"cool_down": timedelta(days=2)}, "at most a day"),
    ],
)
def test_numbers_that_cannot_be_are_refused_when_it_is_built(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        breaker(**options)
