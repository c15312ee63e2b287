"""A test is told what a resource of its services does wrong: it neither hangs nor passes for nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from bus import ConfigurationError, Event, Service, Settings
from bus.hosting import ResourceError
from bus.testing import NotSettled, SimulationFailed, Tester, simulate
from bus.testing.faults import Fault
from bus.testing.simulation import _run


class Placed(Event, type="order.placed"):
    pass


class Pool:
    pass


def shop(pool: Callable[[], AsyncIterator[Pool]], handled: list[Placed] | None = None) -> Service:
    service = Service("shop")
    service.resource(pool)

    @service.on(Placed)
    async def place(placed: Placed, pool: Pool) -> None:
        if handled is not None:
            handled.append(placed)

    return service


async def one(bus: Tester) -> None:
    await bus.publish(Placed())
    await bus.settled()


async def has_no_yield() -> AsyncIterator[Pool]:
    for _ in ():
        yield Pool()


async def is_cancelled_by_its_library() -> AsyncIterator[Pool]:
    connecting = asyncio.ensure_future(asyncio.sleep(60))
    connecting.cancel()
    await connecting
    yield Pool()


async def leaves() -> AsyncIterator[Pool]:
    sys.exit("no database")
    yield Pool()


@pytest.mark.parametrize(
    ("pool", "error", "told"),
    [
        (has_no_yield, ConfigurationError, r"has_no_yield \(.*\): it ended without a yield"),
        (is_cancelled_by_its_library, ResourceError, "cancelled from inside"),
        (leaves, ResourceError, "SystemExit: no database"),
    ],
)
async def test_what_a_resource_does_wrong_as_it_opens_is_raised_to_the_test(
    pool: Callable[[], AsyncIterator[Pool]], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        async with Tester(shop(pool)):
            pytest.fail("it has no pool")
    assert not isinstance(raised.value, ExceptionGroup)


def test_what_a_resource_does_wrong_as_it_opens_is_raised_by_a_simulation() -> None:
    with pytest.raises(ResourceError, match="cancelled from inside"):
        simulate(lambda: Tester(shop(is_cancelled_by_its_library)), one, seeds=range(2))


async def test_who_waits_for_a_service_whose_resource_failed_in_use_is_told() -> None:
    opened: list[int] = []

    async def pool() -> AsyncIterator[Pool]:
        opened.append(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(1)).add_done_callback(lambda _: tasks.create_task(lost()))
            yield Pool()

    async def lost() -> None:
        raise ConnectionError("the poller lost its connection")

    service = Service("shop")
    service.resource(pool)

    @service.on(Placed)
    async def place(placed: Placed, pool: Pool) -> None:
        await asyncio.sleep(5)

    with pytest.raises(ExceptionGroup) as raised:
        async with Tester(service) as bus:
            await one(bus)
    assert raised.group_contains(ConnectionError, match="the poller lost its connection")


def cancelled_later(times: int) -> tuple[list[int], Callable[[], AsyncIterator[Pool]]]:
    """Return a resource whose client leaves a cancellation on the task that opened it, so many times."""
    opened: list[int] = []

    async def pool() -> AsyncIterator[Pool]:
        opened.append(1)
        if len(opened) <= times:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(1, task.cancel)
        yield Pool()

    return opened, pool


async def test_a_service_that_came_again_handles_what_a_test_publishes() -> None:
    (opened, pool), handled = cancelled_later(1), list[Placed]()
    async with Tester(shop(pool, handled)) as bus:
        await bus.advance(5)
        await one(bus)
        assert (len(opened), len(handled)) == (2, 1)


async def test_what_waits_in_a_queue_that_nobody_consumes_is_not_settled() -> None:
    handled: list[Placed] = []
    opened, pool = cancelled_later(1)
    async with Tester(shop(pool, handled)) as bus:
        await bus.advance(0.9)
        with pytest.raises(ResourceError, match="cancelled from inside"):
            await bus.advance(0.2)
        await bus.publish(Placed())
        with pytest.raises(ResourceError, match="cancelled from inside"):
            await bus.settled()
        await bus.advance(5)
        assert (len(opened), len(handled)) == (2, 1)


def test_a_simulation_goes_on_as_a_service_comes_again() -> None:
    def build() -> Tester:
        return Tester(shop(cancelled_later(1)[1]))

    async def scenario(bus: Tester) -> None:
        await bus.advance(2)
        await one(bus)
        (handler,) = bus.services[0].handlers
        assert bus.handled(handler.function)

    simulate(build, scenario, seeds=range(10))


def test_a_simulation_takes_no_step_that_is_slow_for_a_resource_that_does_not_close() -> None:
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        for _ in range(5):
            await asyncio.sleep(1)

    async def stopping(bus: Tester) -> None:
        # the worker stops beside the end of the scenario, in the middle of a step
        await bus.publish(Placed())
        await bus.advance(2)

    for at in range(1, 60):
        faults = (Fault("stop", 10, 1), Fault("slow", at, 80))
        assert _run(lambda: Tester(shop(pool)), stopping, at, faults).error is None


def test_a_simulation_tells_of_a_resource_that_never_closes() -> None:
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.Event().wait()

    with pytest.raises(SimulationFailed, match=r"NotSettled: shop: Pool, which .* does not close within the grace"):
        simulate(lambda: Tester(shop(pool)), one, seeds=range(2))


@pytest.mark.parametrize("late", [31.0, None])
async def test_a_resource_that_does_not_close_in_time_is_told(late: float | None) -> None:
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.wait_for(asyncio.Event().wait(), late)

    with pytest.raises(NotSettled, match=r"^shop: Pool, which .*pool \(.*\) opened, does not close within the grace"):
        async with Tester(shop(pool)) as bus:
            await one(bus)


async def test_a_test_may_give_a_resource_more_time_to_close() -> None:
    closed: list[int] = []

    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.sleep(100)
        closed.append(1)

    async with Tester(shop(pool), settings=Settings(grace=120)) as bus:
        await one(bus)
    assert closed == [1]


async def test_a_resource_that_never_closes_behind_a_handler_that_runs_is_told() -> None:
    service, began = Service("shop"), list[int]()

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        try:
            yield Pool()
        finally:
            await asyncio.Event().wait()

    @service.on(Placed)
    async def place(placed: Placed, pool: Pool) -> None:
        began.append(1)
        await asyncio.sleep(50)

    with pytest.raises(NotSettled, match=r"^shop: Pool, which"):
        async with Tester(service) as bus:
            await bus.publish(Placed())
            await bus.advance(1)
            assert began


async def test_a_resource_that_swallows_its_cancellation_as_it_closes_is_told() -> None:
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    with pytest.raises(NotSettled, match="did not end"):
        async with Tester(shop(pool)) as bus:
            await one(bus)
