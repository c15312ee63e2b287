"""The life of a worker: slots, stops, resources, and what ends no more than its own handler."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus import AccessRefused, Event, Handler, Outcome, Process, Reject, Service, TopologyMismatch, immediate
from bus.discovery import named
from bus.transport.memory import MemoryConsumer, MemoryTransport
from bus.worker import Worker
from tests.contract.stage import Log, Stage, staged


class Placed(Event, type="order.placed"):
    number: int = 0


class Pool: ...


class Mailer: ...


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged("memory", "memory://") as opened:
        yield opened


class Busy:
    """How many run at once, how many there ever were, and when they may end."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.began: Log[int] = Log()
        self.go = asyncio.Event()

    async def work(self, placed: Placed) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.began.append(placed.number)
        try:
            await self.go.wait()
        finally:
            self.now -= 1


async def turns(number: int = 20) -> None:
    """Let whatever can happen at once happen."""
    for _ in range(number):
        await asyncio.sleep(0)


def memory(stage: Stage) -> MemoryTransport:
    assert isinstance(stage.transport, MemoryTransport)
    return stage.transport


def unlogged(handler: Handler, process: Process) -> Process:
    return process


def worker(stage: Stage, *services: Service) -> Worker:
    return Worker(stage.transport, services, app="unit", events=named(services), settings=stage.settings, log=unlogged)


async def publish(stage: Stage, size: int) -> None:
    await stage.bus.publish(*(Placed(number=number) for number in range(size)))


async def test_no_more_deliveries_of_a_service_run_at_once_than_it_has_slots(stage: Stage) -> None:
    service, busy = Service("many", concurrency=3), Busy()
    service.on(Placed, name="one")(busy.work)
    service.on(Placed, name="other")(busy.work)
    async with stage.hosting(service):
        await publish(stage, 10)
        await busy.began.reaches(3)
        await turns()
        assert len(busy.began) == 3
        busy.go.set()
        await busy.began.reaches(20)
    assert busy.most == 3


async def test_a_handlers_own_limit_takes_no_slot_from_its_neighbours(stage: Stage) -> None:
    service, narrow, wide = Service("many", concurrency=4), Busy(), Busy()
    service.on(Placed, name="narrow", concurrency=1)(narrow.work)
    service.on(Placed, name="wide")(wide.work)
    async with stage.hosting(service):
        await publish(stage, 1)
        await narrow.began.reaches(1)
        await publish(stage, 9)
        await wide.began.reaches(3)
        await turns()
        assert (len(narrow.began), len(wide.began)) == (1, 3)
        wide.go.set()
        await wide.began.reaches(10)
        assert len(narrow.began) == 1
        narrow.go.set()
        await narrow.began.reaches(10)
    assert narrow.most == 1


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_handler_of_several_queues_runs_no_more_at_once_than_its_flow_allows(
    stage: Stage, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, busy, options = Service("many"), Busy(), {"ordered_by": "number"} if ordered else {}
    service.on(Placed, name="work", **options)(busy.work)
    limit = MemoryConsumer.limit

    async def limit_of_each_queue(self: MemoryConsumer, unsettled: int) -> None:
        await limit(self, 3 * unsettled)

    monkeypatch.setattr(MemoryConsumer, "limit", limit_of_each_queue)
    async with stage.hosting(service) as hosted:
        hosted.worker.flows["many.work"].hold("test", 1)
        await turns()
        await publish(stage, 6)
        await busy.began.reaches(1)
        await turns()
        assert len(busy.began) == 1
        busy.go.set()
        await busy.began.reaches(6)
        assert busy.most == 1


async def test_a_service_that_hangs_leaves_every_other_service_alone(stage: Stage) -> None:
    hung, fine, hanging, log = Service("hung", concurrency=1), Service("fine", concurrency=1), Busy(), Log[int]()
    hung.on(Placed, name="hang")(hanging.work)

    @fine.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    async with stage.hosting(hung, fine):
        await publish(stage, 20)
        await log.reaches(20)
        assert hanging.began == [0]
        hanging.go.set()


async def test_a_stop_lets_what_runs_finish_and_starts_nothing_new(stage: Stage) -> None:
    service, busy = Service("slow", concurrency=2), Busy()
    service.on(Placed)(busy.work)
    async with stage.hosting(service) as hosted:
        await publish(stage, 6)
        await busy.began.reaches(2)
        stopping = asyncio.ensure_future(hosted.stop())
        await turns()
        assert not stopping.done()
        busy.go.set()
        await stopping
    assert busy.began == [0, 1]
    left = memory(stage).queues["slow.work"].ready
    assert [stored.message.body for stored in left] == [b'{"number":%d}' % number for number in (2, 3, 4, 5)]
    assert {stored.attempt for stored in left} == {1}


async def test_what_waits_unstarted_when_a_worker_stops_is_given_to_others_at_once(stage: Stage) -> None:
    service, busy = Service("slow", concurrency=1), Busy()
    service.on(Placed)(busy.work)
    async with stage.hosting(service) as hosted:
        await publish(stage, 2)
        await busy.began.reaches(1)
        await turns()
        stopping = asyncio.ensure_future(hosted.stop())
        async with stage.hosting(service):
            await busy.began.reaches(2)
            assert not stopping.done()
            busy.go.set()
            await stopping
    assert busy.began == [0, 1]


async def test_what_outlasts_the_grace_is_cancelled_and_comes_again_as_the_same_attempt(stage: Stage) -> None:
    service, busy = Service("slow"), Busy()
    service.on(Placed)(busy.work)
    async with stage.hosting(service, grace=0.01) as hosted:
        await publish(stage, 1)
        await busy.began.reaches(1)
        await hosted.stop()
    assert busy.now == 0
    (stored,) = memory(stage).queues["slow.work"].ready
    assert (stored.attempt, stored.redelivered, stored.first_failed_at) == (1, 1, None)


async def test_a_plain_function_that_outlasts_the_grace_is_told_and_holds_nothing_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service, began, go = Service("slow"), Log[int](), threading.Event()
    loop = asyncio.get_running_loop()

    @service.on(Placed)
    def work(placed: Placed) -> None:
        loop.call_soon_threadsafe(began.append, placed.number)
        go.wait(30)

    async with stage.hosting(service, grace=0.01) as hosted:
        await publish(stage, 1)
        await began.reaches(1)
        await hosted.stop()
    go.set()
    assert len(memory(stage).queues["slow.work"].ready) == 1
    assert "handler left running" in caplog.text
    assert "slow.work" in caplog.text


async def test_a_plain_function_that_raises_a_cancellation_of_its_own_is_not_told_to_run_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("slow")

    @service.on(Placed, retry=immediate(1))
    def work(placed: Placed) -> None:
        raise asyncio.CancelledError  # as a loop of its own does

    async with stage.hosting(service):
        await publish(stage, 1)
        await stage.letters("slow")
    assert "handler left running" not in caplog.text


async def test_a_worker_that_was_stopped_before_it_began_runs_nothing(stage: Stage) -> None:
    service = Service("never")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        raise AssertionError("it must not run")

    await stage.declare(service)
    await publish(stage, 1)
    stop = asyncio.Event()
    stop.set()
    await worker(stage, service).run(stop)
    assert len(memory(stage).queues["never.work"].ready) == 1


async def test_a_worker_can_be_stopped_while_a_resource_opens(stage: Stage) -> None:
    service, opening, closed = Service("slow"), asyncio.Event(), list[str]()

    @service.resource
    async def mailer() -> AsyncIterator[Mailer]:
        try:
            yield Mailer()
        finally:
            closed.append("mailer")

    @service.resource
    async def pool(mailer: Mailer) -> AsyncIterator[Pool]:
        opening.set()
        await asyncio.sleep(60)
        yield Pool()

    stop = asyncio.Event()
    running = asyncio.ensure_future(worker(stage, service).run(stop))
    await opening.wait()
    stop.set()
    await asyncio.wait_for(running, 5)
    assert closed == ["mailer"]


async def test_a_worker_can_be_stopped_while_it_declares(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    declaring, stop = asyncio.Event(), asyncio.Event()

    async def declare(self: object, subscriptions: object) -> None:
        declaring.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(MemoryTransport, "declare", declare)
    running = asyncio.ensure_future(worker(stage, Service("none")).run(stop))
    await declaring.wait()
    stop.set()
    await asyncio.wait_for(running, 5)


async def test_a_refused_login_is_raised_as_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def declare(self: object, subscriptions: object) -> None:
        raise AccessRefused("wrong password")

    monkeypatch.setattr(MemoryTransport, "declare", declare)
    with pytest.raises(AccessRefused, match="wrong password"):
        await worker(stage, Service("none")).run(asyncio.Event())


async def test_resources_open_before_the_first_delivery_and_close_after_the_last(stage: Stage) -> None:
    order: Log[str] = Log()
    first, second, go = Service("first"), Service("second"), asyncio.Event()

    @first.resource
    async def pool() -> AsyncIterator[Pool]:
        order.append("open pool")
        yield Pool()
        order.append("close pool")

    @second.resource
    async def mailer() -> AsyncIterator[Mailer]:
        await asyncio.sleep(0)
        order.append("open mailer")
        yield Mailer()
        order.append("close mailer")

    async def work(placed: Placed) -> None:
        order.append("began")
        await go.wait()
        order.append("ended")

    first.on(Placed)(work)
    second.on(Placed)(work)
    await stage.declare(first, second)
    await publish(stage, 1)
    async with stage.hosting(first, second) as hosted:
        await order.reaches(4)
        stopping = asyncio.ensure_future(hosted.stop())
        await turns()
        go.set()
        await stopping
    assert order[:6] == ["open pool", "open mailer", "began", "began", "ended", "ended"]
    assert sorted(order[6:]) == ["close mailer", "close pool"]


async def test_a_worker_is_stopped_twice_and_started_again(stage: Stage) -> None:
    service, log = Service("shop"), Log[int]()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    one = worker(stage, service)
    for number in range(3):
        stop, started = asyncio.Event(), asyncio.Event()
        running = asyncio.ensure_future(one.run(stop, started.set))
        await started.wait()
        await stage.bus.publish(Placed(number=number))
        await log.reaches(number + 1)
        stop.set()
        stop.set()
        await running
    assert log == [0, 1, 2]


async def test_a_worker_that_is_cancelled_stops_at_once_and_loses_nothing(stage: Stage) -> None:
    service, busy = Service("slow"), Busy()
    service.on(Placed)(busy.work)
    async with stage.hosting(service) as hosted:
        await publish(stage, 2)
        await busy.began.reaches(2)
        await hosted.die()
        assert hosted.task.cancelled()
    assert busy.now == 0
    assert len(memory(stage).queues["slow.work"].ready) == 2


@pytest.mark.parametrize("error", [TopologyMismatch("other arguments"), AccessRefused("no right to read")])
async def test_a_consumer_that_is_refused_later_stops_its_own_handler_only(
    stage: Stage, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service, busy, log, refuse = Service("mixed"), Busy(), Log[int](), asyncio.Event()
    take = MemoryConsumer.__anext__

    async def refused(self: MemoryConsumer) -> Any:
        if self._queue.subscription.handler == "work" and busy.began:
            await refuse.wait()
            raise error
        return await take(self)

    monkeypatch.setattr(MemoryConsumer, "__anext__", refused)
    service.on(Placed, concurrency=1)(busy.work)

    @service.on(Placed)
    async def fine(placed: Placed) -> None:
        log.append(placed.number)

    async with stage.hosting(service) as hosted:
        await publish(stage, 1)
        await log.reaches(1)
        await busy.began.reaches(1)
        busy.go.set()
        refuse.set()
        await turns()
        await publish(stage, 1)
        await log.reaches(2)
        assert not hosted.task.done()
    assert f"handler=mixed.work error={error}" in caplog.text


class Panic(BaseException):
    """As extensions in Rust raise it."""


async def test_what_goes_wrong_in_a_handler_ends_no_worker(stage: Stage) -> None:
    service = Service("bad", concurrency=2)
    errors: list[BaseException] = [
        ValueError("x"),
        SystemExit(3),
        asyncio.CancelledError(),
        Reject("never"),
        BaseExceptionGroup("both", [SystemExit(), KeyError()]),
        StopAsyncIteration(),
        Panic(),
    ]

    @service.on(Placed, retry=immediate(1))
    async def work(placed: Placed) -> None:
        raise errors[placed.number]

    @service.on(Placed, retry=immediate(1))
    def plain(placed: Placed) -> None:
        raise errors[placed.number]

    async with stage.hosting(service) as hosted:
        await publish(stage, len(errors))
        await stage.letters("bad", 2 * len(errors))
        assert not hosted.task.done()


async def test_a_handler_that_never_awaits_leaves_turns_to_others(stage: Stage) -> None:
    service, log = Service("greedy", concurrency=1), Log[int]()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    await stage.declare(service)
    await publish(stage, 200)
    async with stage.hosting(service):
        await log.reaches(1)
        seen = len(log)
        await asyncio.sleep(0)
        assert len(log) - seen <= 4
        await log.reaches(200)


async def test_middleware_of_the_app_is_outside_of_that_of_the_service(stage: Stage) -> None:
    log: Log[str] = Log()

    def telling(name: str) -> Any:
        def wrap(handler: Handler, process: Process) -> Process:
            async def told(delivery: Any) -> Outcome:
                log.append(name)
                return await process(delivery)

            return told

        return wrap

    service = Service("shop", middleware=[telling("third"), telling("fourth")])

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append("handler")

    async with stage.hosting(service, middleware=[telling("first"), telling("second")]):
        await publish(stage, 1)
        await log.reaches(5)
    assert log == ["first", "second", "third", "fourth", "handler"]
