"""A handler's task that is cancelled from inside: by the handler, or by a library that never takes it back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bus import Event, Outcome, Reject, Retry, Service, TopologyMismatch, fixed, immediate
from bus.strays import Ending
from bus.testing import Tester
from bus.transport.memory import MemoryConsumer, MemoryTransport
from tests.contract.stage import Log, staged

from .played import Played, handling, process


class Placed(Event, type="order.placed"):
    number: int = 0
    key: str = ""


def cancel_later(seconds: float = 0.01) -> None:
    """Cancel the running task soon, as a library does that ends its own wait so."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(seconds, task.cancel)


async def timed_out(ends: str) -> None:
    cancel_later()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        match ends:
            case "cancelled":
                raise
            case "failed":
                raise TimeoutError("the bank") from None


async def given_up_at_once(ends: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    if ends == "failed":
        raise TimeoutError("the bank")
    if ends == "cancelled":
        await asyncio.sleep(0)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("ends", ["returned", "cancelled", "failed"])
@pytest.mark.parametrize("cancel", [timed_out, given_up_at_once])
async def test_a_run_that_was_cancelled_from_inside_has_failed_and_what_comes_later_is_handled(
    cancel: Callable[[str], Any], ends: str, ordered: bool
) -> None:
    service, options = Service("shop", concurrency=2), {"ordered_by": "key"} if ordered else {}
    handled: list[int] = []

    @service.on(Placed, retry=fixed(2, 1), timeout=5, **options)
    async def work(placed: Placed) -> None:
        if placed.number < 10:
            await cancel(ends)
        else:
            handled.append(placed.number)

    async with Tester(service) as bus:
        await bus.publish(*(Placed(number=number, key=str(number)) for number in range(30)))
        await bus.settled()
        letters = bus.dead_letters()
        assert sorted(handled) == list(range(10, 30))
    assert {letter.failure.attempts for letter in letters} == {2}
    assert len(letters) == 10
    (error,) = {letter.failure.error for letter in letters}
    if ends == "failed":
        assert error == "the bank"
    else:
        assert "cancelled from inside" in error
        assert "asyncio.timeout()" in error


async def test_a_timeout_still_is_one_and_so_is_a_refusal_of_its_own() -> None:
    service = Service("shop", concurrency=2)

    @service.on(Placed, retry=immediate(1), timeout=5)
    async def work(placed: Placed) -> None:
        if placed.number:
            await given_up_at_once("returned")
            raise Reject("never")
        await asyncio.sleep(60)

    async with Tester(service) as bus:
        await bus.publish(Placed(), Placed(number=1))
        await bus.settled()
        assert {letter.failure.reason: letter.failure.error for letter in bus.dead_letters()} == {
            "exhausted": "the handler ran past its timeout of 5 s",
            "rejected": "never",
        }


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_stray_that_comes_after_its_run_takes_no_slot(ordered: bool, caplog: pytest.LogCaptureFixture) -> None:
    service, options = Service("shop", concurrency=2), {"ordered_by": "key"} if ordered else {}
    handled: list[int] = []

    @service.on(Placed, **options)
    async def work(placed: Placed) -> None:
        cancel_later(1)
        handled.append(placed.number)

    async with Tester(service) as bus:
        for number in range(10):
            await bus.publish(Placed(number=number, key=str(number)))
            await bus.settled()
            await bus.advance(5)
        assert not bus.dead_letters()
    assert handled == list(range(10))
    assert "stray cancellation" in caplog.text
    assert "shop.work" in caplog.text


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_waits_for_its_turn_meanwhile_keeps_it(ordered: bool) -> None:
    service, options = Service("shop"), {"ordered_by": "key"} if ordered else {}
    tasks: set[asyncio.Task[Any]] = set()
    handled: list[tuple[str, int]] = []

    @service.on(Placed, concurrency=1, retry=fixed(2, 1), **options)
    async def work(placed: Placed) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        await asyncio.sleep(10)
        handled.append((placed.key, placed.number))

    async with Tester(service) as bus:
        for number in range(2):
            await bus.publish(Placed(key="a", number=number), Placed(key="b", number=number))
            await bus.advance(5 + 20 * (1 - number))
        assert len(tasks) == 2
        for task in tasks:
            task.cancel()
        await bus.settled()
    assert sorted(handled) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


async def test_a_stray_that_hits_a_suspect_before_its_turn_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("shop")
    began, handled = list[int](), list[int]()
    limit, struck = MemoryConsumer.limit, list[int]()

    @service.on(Placed, concurrency=2)
    async def work(placed: Placed) -> None:
        began.append(placed.number)
        await asyncio.sleep(10)
        handled.append(placed.number)

    async def slow(self: MemoryConsumer, unsettled: int) -> None:
        if began and not struck:
            struck.append(unsettled)
            cancel_later(1)
            await asyncio.sleep(60)
        await limit(self, unsettled)

    async with Tester(service) as bus:
        await bus.publish(Placed(number=0), Placed(number=1))
        for queue in bus.transport.queues.values():
            queue.ready = deque(replace(stored, redelivered=10) for stored in queue.ready)
        monkeypatch.setattr(MemoryConsumer, "limit", slow)
        await bus.settled()
    assert struck
    assert sorted(handled) == [0, 1]


class Slow(Played):
    """A delivery that takes a while to settle."""

    async def settle(self, outcome: Outcome) -> None:
        await asyncio.sleep(0.05)
        await super().settle(outcome)


async def test_a_stray_while_a_success_is_settled_makes_a_failure_of_it() -> None:
    async def work(placed: Any) -> None:
        cancel_later()

    delivery = Slow()
    with Ending():
        # the tasks that are started inside are those that are to end
        await asyncio.create_task(process(handling(work, retry=fixed(2, 1)))(delivery))
    (outcome,) = delivery.settled
    assert isinstance(outcome, Retry)
    assert "cancelled from inside" in outcome.failure.error


async def test_a_stop_beside_a_stray_is_a_stop() -> None:
    delivery, running = Played(), asyncio.Event()

    async def work(placed: Any) -> None:
        await given_up_at_once("returned")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            running.set()
            await asyncio.sleep(60)

    with Ending() as ending:
        task = asyncio.create_task(process(handling(work))(delivery))
        await running.wait()
        ending.begun = True
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert delivery.settled == []


@pytest.mark.parametrize("turns", [0, 2], ids=["before its owner", "after its owner"])
async def test_what_runs_beside_a_consumer_that_fails_is_ended_and_not_settled(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, began, told, refuse = Service("shop"), Log[int](), Log[str](), asyncio.Event()
    take = MemoryConsumer.__anext__

    async def refused(self: MemoryConsumer) -> Any:
        if began:
            await refuse.wait()
            raise TopologyMismatch("other arguments")
        return await take(self)

    monkeypatch.setattr(MemoryConsumer, "__anext__", refused)

    @service.on(Placed, retry=immediate(1))
    async def work(placed: Placed) -> None:
        began.append(placed.number)
        try:
            await asyncio.sleep(60)
        finally:
            told.append("ended")
            for _ in range(turns):  # its owner goes on meanwhile
                await asyncio.sleep(0)

    def watch(handler: Any, inner: Any) -> Any:
        async def run(delivery: Any) -> Any:
            try:
                return await inner(delivery)
            finally:
                told.append("left")

        return run

    async with staged("memory", "memory://") as stage:
        async with stage.hosting(service, middleware=[watch]):
            # the second delivery lets another task ask for a third
            await stage.bus.publish(Placed(), Placed(number=1))
            await began.reaches(1)
            refuse.set()
            await told.reaches(2)
        assert isinstance(stage.transport, MemoryTransport)
        assert len(stage.transport.queues["shop.work"].ready) == 2
