"""How a Tester begins and ends: as a worker does, in bounded time, and with all that it started."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from bus import Event, Service
from bus.testing import NotSettled, SimulationFailed, Tester, simulate, virtual_time


class Placed(Event, type="order.placed"):
    pass


class Pool:
    pass


def pooled(log: list[str], error: Exception | None = None, *, opens_in: float = 0) -> Service:
    service = Service("shop")

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        await asyncio.sleep(opens_in)
        log.append("open")
        yield Pool()
        log.append("closed")
        if error is not None:
            raise error

    @service.on(Placed)
    async def place(placed: Placed, pool: Pool) -> None: ...

    return service


async def one(bus: Tester) -> None:
    await bus.publish(Placed())
    await bus.settled()


async def test_what_stands_behind_the_yield_of_a_resource_runs_without_a_finally() -> None:
    log: list[str] = []
    async with Tester(pooled(log)) as bus:
        await one(bus)
    assert log == ["open", "closed"]


async def test_what_a_resource_raises_as_it_closes_fails_the_test() -> None:
    with pytest.raises(RuntimeError, match="does not close"):
        async with Tester(pooled([], RuntimeError("the pool does not close"))) as bus:
            await one(bus)


async def test_what_a_resource_raises_as_it_closes_hides_no_failure() -> None:
    with pytest.raises(AssertionError, match="of the test") as failed:
        async with Tester(pooled([], RuntimeError("the pool does not close"))) as bus:
            await one(bus)
            raise AssertionError("of the test")
    assert failed.value.__notes__[-1] == "Besides, the worker raised as it ended: RuntimeError: the pool does not close"


def test_what_a_resource_raises_as_it_closes_is_a_failure_of_a_simulation() -> None:
    with pytest.raises(SimulationFailed, match=r"seed=\d+: RuntimeError: the pool does not close"):
        simulate(lambda: Tester(pooled([], RuntimeError("the pool does not close"))), one, seeds=range(2))


async def test_a_task_that_a_handler_left_and_that_swallows_its_cancellation_is_named() -> None:
    service, log = Service("shop"), []
    left: list[asyncio.Task[None]] = []

    async def poll() -> None:
        while True:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                log.append("swallowed")

    @service.on(Placed)
    async def place(placed: Placed) -> None:
        left.append(asyncio.create_task(poll()))

    with pytest.raises(NotSettled, match=r"swallows CancelledError.*\.poll \(.*test_ending\.py:\d+\)"):
        async with Tester(service) as bus:
            await one(bus)
    assert log == ["swallowed"]
    assert left[0].done()


async def test_a_tester_that_is_given_up_as_it_starts_leaves_nothing_running() -> None:
    log: list[str] = []
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), Tester(pooled(log, opens_in=30)):
            pytest.fail("its resource was to take longer")
    assert asyncio.all_tasks() == before
    assert log == []


def waiting_for(there: asyncio.Event) -> Service:
    service = Service("billing")

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        await there.wait()
        yield Pool()

    @service.on(Placed)
    async def bill(placed: Placed, pool: Pool) -> None: ...

    return service


async def test_a_resource_that_never_opens_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "SILENCE", 0.01)
    before = asyncio.all_tasks()
    with pytest.raises(NotSettled, match=r"^billing cannot begin: a resource .* waits, as it opens"):
        async with Tester(pooled([]), waiting_for(asyncio.Event())):
            pytest.fail("it has no pool")
    assert asyncio.all_tasks() == before


async def test_a_resource_that_a_thread_opens_is_waited_for() -> None:
    there, loop = asyncio.Event(), asyncio.get_running_loop()
    thread = threading.Timer(0.1, loop.call_soon_threadsafe, [there.set])
    thread.start()
    async with Tester(waiting_for(there)) as bus:
        await one(bus)
        assert len(bus.handled(next(iter(bus.services[0].handlers)).function)) == 1
    thread.join()


def test_a_simulation_whose_resource_never_opens_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "SILENCE", 0.01)
    with pytest.raises(SimulationFailed, match=r"NotSettled: billing cannot begin"):
        simulate(lambda: Tester(waiting_for(asyncio.Event())), one, seeds=range(2))
