"""What waits for its right to run, and keeps nobody else from his: at a consumer that is played by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from bus import Ack, Outcome, Release, Service, Settings
from bus.delivery import Runtime, build
from bus.discovery import named
from bus.errors import DeliveryLost
from bus.flow import Flow
from bus.middleware.logging import logging
from bus.ordered import OrderedSubscriber
from bus.pace import Pace, rate
from bus.resources import Resources
from bus.runs import Runs
from bus.subscriber import Gate, Subscriber, Turn

from .played import Placed, Played


class Handed(Played):
    """A delivery that is handed out by a broker, and cannot be settled once it is lost."""

    async def settle(self, outcome: Outcome) -> None:
        if self.lost:
            raise DeliveryLost("gone")
        await super().settle(outcome)


def suspect(number: int = 0) -> Handed:
    made = Handed(redelivered=2, id=f"suspect {number}")
    made.suspect = True
    return made


def body(number: int) -> bytes:
    return b'{"number": %d}' % number


class Kept(Handed):
    """A delivery that cannot be settled, and does not go back either for as long."""

    async def settle(self, outcome: Outcome) -> None:
        await super().settle(outcome)
        raise DeliveryLost("held")


class Refused(Handed):
    """A delivery that is settled as soon as the broker takes what its outcome publishes."""

    def __init__(self, *args: Any, **changed: Any) -> None:
        super().__init__(*args, **changed)
        self.suspect = True
        self.settles, self.taken = asyncio.Event(), asyncio.Event()

    async def settle(self, outcome: Outcome) -> None:
        self.settles.set()
        await self.taken.wait()
        await super().settle(outcome)


class Consumer:
    """Hands out what it is given, and notes who asks it for more."""

    def __init__(self, flow: Flow, stop: asyncio.Event) -> None:
        self.flow = flow
        self.stop = stop
        self.given: asyncio.Queue[Handed] = asyncio.Queue()
        self.asks: list[asyncio.Task[Any]] = []
        self.limits: list[int] = []
        self.consuming = True

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Handed:
        return await self.given.get()

    async def limit(self, unsettled: int) -> None:
        asking = asyncio.current_task()
        assert asking is not None
        self.asks.append(asking)
        self.limits.append(unsettled)
        await asyncio.sleep(0)


def subscriber(
    service: Service, slots: asyncio.Semaphore, turn: Turn, pace: Pace | None = None
) -> Subscriber | OrderedSubscriber:
    runtime = Runtime(
        settings=Settings(),
        events=named([service]),
        resources=Resources(service.resources, {}),
        source="/test/shop",
        threads=anyio.CapacityLimiter(4),
    )
    handler, gate, runs = replace(service.handlers[0], flow=Flow()), Gate(slots, turn, None, pace), Runs()
    process = build(handler, runtime, gate, runs, (), logging())
    if handler.ordered_by is not None:
        return OrderedSubscriber(handler, gate, process, 4, lambda message: message.id, runs, 0.1, lambda: None)
    return Subscriber(handler, gate, process, 8, runs, 0.1, lambda: None)


@asynccontextmanager
async def consuming(
    service: Service, slots: asyncio.Semaphore, turn: Turn, pace: Pace | None = None
) -> AsyncIterator[Consumer]:
    """Run the one handler of a service meanwhile."""
    stop, made = asyncio.Event(), subscriber(service, slots, turn, pace)
    consumer = Consumer(made.handler.flow, stop)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.run(consumer, stop))
        try:
            yield consumer
        finally:
            stop.set()


async def turns() -> None:
    """Let everybody go on who waits for nothing."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_what_comes_again_beside_a_hung_run_takes_neither_slots_nor_the_turn() -> None:
    a, b, began, hung, turn = Service("a"), Service("b"), list[str](), threading.Event(), Turn()
    slots = asyncio.Semaphore(3)

    @a.on(Placed, timeout=0.01)
    def work(placed: Placed) -> None:
        began.append("a")
        hung.wait()

    @b.on(Placed)
    async def other(placed: Placed) -> None:
        began.append("b")

    async with consuming(a, slots, turn) as first, consuming(b, asyncio.Semaphore(1), turn) as second:
        try:
            lost: list[Handed] = []
            for redelivered in range(4):
                copy = Handed(redelivered=redelivered)
                copy.suspect = redelivered >= 2
                first.given.put_nowait(copy)
                await until(first.given.empty)
                await until(lambda: began)
                await asyncio.sleep(0.02)
                assert slots._value == 2
                copy.lost = redelivered < 3  # its channel ends, so it comes again
                lost.append(copy)
            second.given.put_nowait(suspect())
            await until(lambda: "b" in began)
        finally:
            hung.set()
        await until(lambda: copy.settled)
    assert began == ["a", "b"]
    assert not any(each.settled for each in lost[:-1])


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_suspect_that_waits_for_a_slot_keeps_nobody_from_his_turn(ordered: bool) -> None:
    a, b, began, turn = Service("a"), Service("b"), list[str](), Turn()
    slots = asyncio.Semaphore(1)
    options = {"ordered_by": "number"} if ordered else {}

    @a.on(Placed, **options)
    async def work(placed: Placed) -> None:
        began.append("a")

    @b.on(Placed)
    async def other(placed: Placed) -> None:
        began.append("b")

    await slots.acquire()
    async with consuming(a, slots, turn) as first, consuming(b, asyncio.Semaphore(1), turn) as second:
        waits = suspect(1)
        first.given.put_nowait(waits)
        await until(first.given.empty)
        await asyncio.sleep(0.01)
        second.given.put_nowait(suspect(2))
        await until(lambda: began == ["b"])
        assert waits.marks == []
        slots.release()
        await until(lambda: waits.settled)
    assert began == ["b", "a"]


async def test_a_suspect_that_waits_for_its_turn_keeps_no_slot() -> None:
    service, handled, turn = Service("a"), list[str](), Turn()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        handled.append("a")

    assert turn.take_now()
    async with consuming(service, asyncio.Semaphore(1), turn) as consumer:
        waits, passes = suspect(), Handed()
        for each in (waits, passes):
            consumer.given.put_nowait(each)
        await until(lambda: passes.settled)
        assert waits.settled == []
        turn.give()
        await until(lambda: waits.settled == [Ack()])
    assert len(handled) == 2


async def test_a_stray_while_a_suspect_lets_its_neighbours_through_gives_it_back() -> None:
    service, turn = Service("a"), Turn()

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    assert turn.take_now()
    async with consuming(service, asyncio.Semaphore(1), turn) as consumer:
        waits = suspect()
        consumer.given.put_nowait(waits)
        await until(lambda: consumer.asks)
        consumer.asks[0].cancel()  # nobody stops the worker
        await until(lambda: waits.settled)
    assert waits.settled == [Release()]


async def test_a_suspect_that_waits_for_its_earlier_run_lets_its_neighbours_through() -> None:
    service, turn, go, began = Service("a"), Turn(), asyncio.Event(), list[str]()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        began.append("a")
        await go.wait()

    async with consuming(service, asyncio.Semaphore(4), turn) as consumer:
        first, again = Handed(id="suspect 0"), suspect(0)
        consumer.given.put_nowait(first)
        await until(lambda: began)
        first.lost = True
        consumer.given.put_nowait(again)
        await until(lambda: consumer.limits == [8])  # it came alone, and nothing else would
        assert not turn.taken
        go.set()
        await until(lambda: again.settled)
    assert began == ["a"]


async def test_a_suspect_that_is_held_after_its_run_lets_its_neighbours_through() -> None:
    service, turn = Service("a"), Turn()

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    async with consuming(service, asyncio.Semaphore(4), turn) as consumer:
        held = Kept(redelivered=2)
        held.suspect = True
        consumer.given.put_nowait(held)
        await until(lambda: consumer.limits == [8])
        assert not turn.taken


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_suspect_whose_run_is_over_holds_up_nobody_while_it_is_settled(
    ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.subscriber.SETTLES_WITHIN", 0.01)
    a, b, began, turn = Service("a"), Service("b"), list[str](), Turn()
    options = {"ordered_by": "number"} if ordered else {}

    @a.on(Placed, **options)
    async def work(placed: Placed) -> None:
        began.append(f"a {placed.number}")

    @b.on(Placed)
    async def other(placed: Placed) -> None:
        began.append("b")

    slots = asyncio.Semaphore(4)
    async with consuming(a, slots, turn) as first, consuming(b, asyncio.Semaphore(1), turn) as second:
        held, next_of_its_key = Refused(id="0", redelivered=2), Handed(body(1), id="0")
        first.given.put_nowait(held)
        await held.settles.wait()
        second.given.put_nowait(suspect())
        await until(lambda: began == ["a 0", "b"])
        if ordered:
            first.given.put_nowait(next_of_its_key)
        else:
            await until(lambda: first.limits == [8])  # it came alone, and nothing else would
        neighbour = Handed(body(2), id="2")
        first.given.put_nowait(neighbour)
        await until(lambda: neighbour.settled)
        assert began == ["a 0", "b", "a 2"]
        held.taken.set()
        await until(lambda: next_of_its_key.settled if ordered else held.settled)
    assert slots._value == 4
    assert not turn.taken


@pytest.mark.parametrize("suspected", [False, True])
async def test_a_suspect_of_an_ordered_handler_waits_for_what_runs_and_not_for_what_is_settled(suspected: bool) -> None:
    service, turn, began, go = Service("a"), Turn(), list[int](), asyncio.Event()

    @service.on(Placed, ordered_by="number")
    async def work(placed: Placed) -> None:
        began.append(placed.number)
        await (go.wait() if placed.number == 1 else asyncio.sleep(0))

    async with consuming(service, asyncio.Semaphore(4), turn) as consumer:
        held, runs = Refused(body(0), id="0", redelivered=2), Handed(body(1), id="1")
        held.suspect = suspected
        for each in (held, runs):
            consumer.given.put_nowait(each)
            await until(lambda: each.message.id in map(str, began))  # noqa: B023
        await held.settles.wait()
        alone = Handed(body(2), redelivered=10, id="2")
        alone.suspect = True
        consumer.given.put_nowait(alone)
        await turns()
        assert began == [0, 1]
        go.set()
        await until(lambda: alone.settled)
        held.taken.set()
        await until(lambda: held.settled)


async def test_a_suspect_that_is_settled_at_once_leaves_the_next_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bus.subscriber.SETTLES_WITHIN", 0.001)
    service, turn = Service("a"), Turn()

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    async with consuming(service, asyncio.Semaphore(4), turn) as consumer:
        settled = suspect()
        consumer.given.put_nowait(settled)
        await until(lambda: settled.settled)
        await asyncio.sleep(0.01)
        assert not consumer.limits


async def test_a_suspect_that_is_held_after_the_stop_takes_nothing_more() -> None:
    service, go, began = Service("a"), asyncio.Event(), list[str]()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        began.append("a")
        await go.wait()

    async with consuming(service, asyncio.Semaphore(4), Turn()) as consumer:
        held = Kept(redelivered=2)
        held.suspect = True
        consumer.given.put_nowait(held)
        await until(lambda: began)
        consumer.stop.set()
        await until(lambda: consumer.limits)
        go.set()
    assert held.settled
    assert consumer.limits == [0]


async def test_suspects_of_an_ordered_handler_leave_its_service_its_slots() -> None:
    a, b, turn, slots = Service("a"), Service("b"), Turn(), asyncio.Semaphore(2)
    go, began = asyncio.Event(), list[str]()

    @a.on(Placed, ordered_by="number")
    async def work(placed: Placed) -> None:
        began.append("a")
        await go.wait()

    @b.on(Placed)
    async def other(placed: Placed) -> None:
        began.append("b")

    assert turn.take_now()
    async with consuming(a, slots, turn) as first, consuming(b, slots, turn) as second:
        for number in range(4):
            first.given.put_nowait(suspect(number))
        await until(first.given.empty)
        await turns()
        turn.give()
        await until(lambda: began == ["a"])
        await turns()
        second.given.put_nowait(Handed())
        await until(lambda: began == ["a", "b"])
        go.set()
        await until(lambda: began.count("a") == 4)
    assert slots._value == 2


async def test_an_ordered_message_that_becomes_a_suspect_while_it_waits_for_a_slot_waits_for_its_turn() -> None:
    service, turn, slots, began = Service("a"), Turn(), asyncio.Semaphore(1), list[str]()

    @service.on(Placed, ordered_by="number")
    async def work(placed: Placed) -> None:
        began.append("a")

    await slots.acquire()
    async with consuming(service, slots, turn) as consumer:
        first, again = Handed(id="suspect 0", redelivered=1), suspect(0)
        consumer.given.put_nowait(first)
        await until(consumer.given.empty)
        await turns()
        first.lost = True
        consumer.given.put_nowait(again)
        await until(consumer.given.empty)
        assert turn.take_now()
        slots.release()
        await turns()
        assert not began
        turn.give()
        await until(lambda: again.settled)
    assert began == ["a"]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("why", ["another suspect runs", "it is lost", "its handler is paused"])
async def test_what_does_not_begin_after_all_costs_no_pace(ordered: bool, why: str) -> None:
    service, turn, slots, pace = Service("a"), Turn(), asyncio.Semaphore(1), Pace(rate("6/h"))
    began: list[str] = []
    options = {"ordered_by": "number"} if ordered else {}

    @service.on(Placed, **options)
    async def work(placed: Placed) -> None:
        began.append("a")

    await slots.acquire()
    async with consuming(service, slots, turn, pace) as consumer:
        waits = suspect()
        consumer.given.put_nowait(waits)
        await until(consumer.given.empty)
        await turns()
        match why:
            case "another suspect runs":
                assert turn.take_now()
            case "it is lost":
                waits.lost = True
            case _:
                consumer.flow.hold("test")
        slots.release()
        await turns()
        assert not began
        assert (pace.free(), slots.locked()) == (True, False)
        if why == "another suspect runs":
            turn.give()
            await until(lambda: began)
            assert not pace.free()


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_a_run_came_to_is_known_for_as_long_as_its_message_waits_here(
    ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, began, go, loop = Service("a"), list[int](), dict[int, asyncio.Event](), asyncio.get_running_loop()
    options = {"ordered_by": "number"} if ordered else {}

    @service.on(Placed, **options)
    async def work(placed: Placed) -> None:
        began.append(placed.number)
        await go.setdefault(placed.number, asyncio.Event()).wait()

    async with consuming(service, asyncio.Semaphore(1), Turn()) as consumer:
        lost, again = Handed(body(0), id="0"), Handed(body(0), id="0", redelivered=1)
        others = [Handed(body(number), id=str(number)) for number in (1, 2)]
        consumer.given.put_nowait(lost)
        await until(lambda: began)
        for each in (*others, again):
            consumer.given.put_nowait(each)
        await until(consumer.given.empty)
        lost.lost = True
        go[0].set()
        await until(lambda: began == [0, 1])
        monkeypatch.setattr(loop, "time", lambda time=loop.time: time() + 2 * Runs.KEPT)
        go[1].set()
        await until(lambda: began == [0, 1, 2])
        go[2].set()
        await until(lambda: again.settled)
    assert began == [0, 1, 2]
