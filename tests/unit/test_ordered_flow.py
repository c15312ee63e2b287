"""What holds an ordered handler back, and suspects among its messages, in virtual time."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime

from bus import Context, Delivery, Handler, Message, Outcome, Process, Release, Service, breaker, fixed
from bus.message import Outgoing
from bus.testing import Tester

from .test_ordered import Moved, moves, numbers


class Flows:
    """A middleware that keeps the handler as its worker has it."""

    def __init__(self) -> None:
        self.handler: Handler

    def __call__(self, handler: Handler, process: Process) -> Process:
        self.handler = handler
        return process


async def test_a_pause_gives_all_back_and_goes_on_in_order() -> None:
    flows = Flows()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(3, 60))
    async def work(moved: Moved, context: Context) -> None:
        if moved.number == 0 and context.attempt < 3:
            raise ConnectionError

    async with Tester(service, middleware=[flows]) as bus:
        await bus.publish(*moves("a", "a", "b"))
        await bus.advance(70)
        assert numbers(bus.handled(work)) == [2]
        flows.handler.flow.hold("test")
        await bus.settled()  # a paused handler's backlog is no work to wait for
        assert len(bus.transport.queues["yard.work"].ready) == 2
        assert numbers(bus.handled(work)) == [2]
        flows.handler.flow.release("test")
        await bus.advance(1)
        await bus.settled()
        assert numbers(bus.handled(work)) == [2, 0, 1]


async def test_nothing_goes_back_while_something_runs() -> None:
    flows, service = Flows(), Service("yard")
    seen: list[int] = []

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        seen.append(moved.number)
        await asyncio.sleep(10)

    async with Tester(service, middleware=[flows]) as bus:
        await bus.publish(*moves("a", "a", "b"))
        await bus.advance(5)
        flows.handler.flow.hold("test")
        await bus.advance(1)
        assert bus.transport.queues["yard.work"].consumers[0].unsettled == 3
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 2]
        assert bus.transport.queues["yard.work"].consumers[0].unsettled == 0
        flows.handler.flow.release("test")
        await bus.advance(1)
        await bus.settled()
    assert seen == [0, 2, 1]


async def test_a_run_that_never_ends_keeps_a_handler_from_going_on_for_a_while_only() -> None:
    flows, service, end = Flows(), Service("yard"), asyncio.Event()

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        while moved.parcel == "a" and not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:  # as a thread, which cannot be cancelled
                pass

    async with Tester(service, middleware=[flows]) as bus:
        await bus.publish(*moves("a"))
        await bus.advance(1)
        flows.handler.flow.hold("test")
        await bus.advance(1)
        flows.handler.flow.release("test")
        await bus.publish(*moves("b"))
        await bus.advance(1800)
        seen = [message.body for message in bus.handled(work)]
        end.set()
        await bus.settled()
    assert len(seen) == 1


async def test_a_hold_that_ends_before_anybody_saw_it_changes_nothing() -> None:
    flows = Flows()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        flows.handler.flow.hold("test")
        asyncio.get_running_loop().call_soon(flows.handler.flow.release, "test")

    async with Tester(service, middleware=[flows]) as bus:
        await bus.publish(*moves(*"aabbccdd"))
        await bus.advance(1)
        assert len(bus.handled(work)) == 8


async def test_probing_takes_one_at_a_time_in_order() -> None:
    flows = Flows()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        await asyncio.sleep(1)

    async with Tester(service, middleware=[flows]) as bus:
        flows.handler.flow.hold("test", 1)
        await bus.publish(*moves(*"abcd"))
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1, 2, 3]


async def test_what_a_middleware_releases_is_run_again_in_its_place() -> None:
    released: list[str] = []
    service = Service("yard")

    def releasing(handler: Handler, process: Process) -> Process:
        async def once(delivery: Delivery) -> Outcome:
            if not released:
                released.append(delivery.message.id)
                return Release()
            return await process(delivery)

        return once

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved, context: Context) -> None:
        assert context.attempt == 1

    async with Tester(service, middleware=[releasing]) as bus:
        await bus.publish(*moves("a", "a"))
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1]


async def test_a_suspect_runs_alone_in_its_handler() -> None:
    running = 0
    beside: list[tuple[int, int]] = []
    service = Service("yard")
    go = asyncio.Event()

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        nonlocal running
        if not go.is_set():
            await asyncio.Event().wait()
        running += 1
        beside.append((moved.number, running))
        await asyncio.sleep(1)
        running -= 1

    async with Tester(service) as bus:
        await bus.publish(*moves(*"abcd"))
        for _ in range(2):
            await bus.advance(1)
            await bus.crash()
        go.set()
        await bus.settled()
    assert beside[:2] == [(0, 1), (1, 1)]
    assert len(beside) == 4


async def test_a_suspect_that_waits_for_its_pace_holds_up_nobodys_turn() -> None:
    service = Service("yard")
    done: list[str] = []

    @service.on(Moved, ordered_by="parcel", rate="6/h")
    async def slow(moved: Moved) -> None:
        done.append("slow")

    @service.on(Moved)
    async def quick(moved: Moved) -> None:
        done.append("quick")

    def held(handler: Handler, process: Process) -> Process:
        handler.flow.hold("test")
        held_back.append(handler)
        return process

    held_back: list[Handler] = []
    async with Tester(service, middleware=[held]) as bus:
        await bus.publish(*moves(*"abc"))
        for queue in bus.transport.queues.values():
            queue.ready = deque(replace(stored, redelivered=10) for stored in queue.ready)
        for handler in held_back:
            handler.flow.release("test")
            await bus.advance(30)
        assert sorted(done) == ["quick"] * 3 + ["slow"]
        await bus.settled()
    assert len(done) == 6


async def test_poison_is_dead_lettered_alone_and_its_key_goes_on() -> None:
    service = Service("yard")
    lives: list[int] = []

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        if moved.number == 1:
            lives.append(1)
            await asyncio.Event().wait()

    async with Tester(service) as bus:
        await bus.publish(*moves(*"aabab"))
        for life in range(1, 8):
            while len(lives) < life:
                await asyncio.sleep(0)
            await bus.crash()
        await bus.settled()
        (letter,) = bus.dead_letters()
        assert letter.failure.reason == "crash"
        assert sorted(set(numbers(bus.handled(work)))) == [0, 2, 3, 4]


async def test_poison_behind_a_message_that_fails_and_stays_first_is_found_too() -> None:
    service = Service("yard")
    lives: list[int] = []

    @service.on(Moved, ordered_by="parcel", retry=fixed(2, 600))
    async def work(moved: Moved) -> None:
        if moved.number == 0 and not found:
            raise ConnectionError
        if moved.number == 1:
            lives.append(1)
            await asyncio.Event().wait()

    found: list[str] = []
    async with Tester(service) as bus:
        await bus.publish(*moves(*"abc"))
        while not found:
            seen = len(lives)
            while len(lives) == seen and not (found := [letter.failure.reason for letter in bus.dead_letters()]):
                await asyncio.sleep(0)
            await bus.crash()
            assert len(lives) < 20
        await bus.settled()
        assert found == ["crash"]
        assert {0, 2} <= set(numbers(bus.handled(work)))


async def test_a_rate_paces_an_ordered_handler_and_keeps_its_order() -> None:
    begun: list[float] = []
    service, loop = Service("yard"), asyncio.get_running_loop()

    @service.on(Moved, ordered_by="parcel", rate="1/s")
    async def work(moved: Moved) -> None:
        begun.append(loop.time())

    async with Tester(service) as bus:
        await bus.publish(*moves(*"abab"))
        await bus.settled()
        done = numbers(bus.handled(work))
    assert [number for number in done if number % 2 == 0] == [0, 2]
    assert [number for number in done if number % 2 == 1] == [1, 3]
    assert begun[-1] - begun[0] > 2.8


async def test_an_open_breaker_keeps_what_failed_in_its_place() -> None:
    seen: list[tuple[int, int]] = []
    service = Service("yard", middleware=[breaker(failures=2, within=60, cool_down=30)])

    @service.on(Moved, ordered_by="parcel", retry=fixed(9, 5))
    async def work(moved: Moved, context: Context) -> None:
        seen.append((moved.number, context.attempt))
        if moved.number == 0 and context.attempt < 4:
            raise ConnectionError

    async with Tester(service, middleware=[]) as bus:
        await bus.publish(*moves("a", "a", "a"))
        await bus.settled()
        await bus.advance(300)
        assert numbers(bus.handled(work)) == [0, 1, 2]
        assert bus.dead_letters() == []
    assert seen == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (2, 1)]


async def test_a_breaker_gives_all_back_as_it_opens_and_but_seldom_while_its_tries_fail() -> None:
    tries: list[int] = []
    times: list[int] = []
    service = Service("yard", middleware=[breaker(failures=2, within=60, cool_down=5)])

    @service.on(Moved, ordered_by="parcel", retry=fixed(1_000, 1))
    async def work(moved: Moved, context: Context) -> None:
        tries.append(moved.number)
        raise ConnectionError

    def counting(handler: Handler, process: Process) -> Process:
        async def counted(delivery: Delivery) -> Outcome:
            times.append(delivery.redelivered)
            return await process(delivery)

        return counted

    async with Tester(service, middleware=[counting]) as bus:
        await bus.publish(*moves(*"aaa"))
        await bus.advance(3)
        assert len(bus.transport.queues["yard.work"].ready) == 3
        await bus.advance(1_000)
        assert set(tries) == {0}
        assert len(tries) > 150
        assert times[-1] == 4  # as it opened, and every five minutes


async def test_what_fails_without_an_id_is_given_up_by_its_policy_though_a_breaker_gives_it_back() -> None:
    attempts: list[int] = []
    service = Service("yard", middleware=[breaker(failures=2, within=60, cool_down=30)])

    @service.on(Moved, ordered_by="parcel", retry=fixed(5, 5))
    async def work(moved: Moved, context: Context) -> None:
        if moved.parcel == "poison":
            attempts.append(context.attempt)
            raise ConnectionError

    async with Tester(service) as bus:
        for parcel in ("poison", "a", "b"):
            message = Message(
                id=parcel,
                id_made_up=True,
                type="parcel.moved",
                version=None,
                source="",
                time=datetime.now(UTC),
                body=b'{"parcel": "%s"}' % parcel.encode(),
            )
            await bus.transport.publish([Outgoing(message)])
        await bus.advance(3600)
        assert [letter.failure.reason for letter in bus.dead_letters()] == ["exhausted"]
        assert len(bus.handled(work)) == 2
    assert attempts == [1, 2, 3, 4, 5]
