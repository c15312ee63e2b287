"""What a resource does, fail or hang, as it opens, is in use or closes: it stops its own service, which comes again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from random import Random

import pytest

from bus import ConfigurationError, Event, Service, breaker, fixed, hosting
from bus import worker as worker_module
from bus.hosting import Host
from bus.opening import Opened
from bus.resources import where
from bus.testing.virtual_time import VirtualTime
from bus.worker import PAUSED
from tests.contract.stage import Hosted, Log, Stage, staged


class Placed(Event, type="order.placed"):
    number: int = 0


class Shipped(Event, type="order.shipped"):
    number: int = 0


class Pool: ...


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged("memory", "memory://") as opened:
        yield opened


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "FIRST", 0.01)
    monkeypatch.setattr(hosting, "ENDS_WITHIN", 0.01)


class Two:
    """A service whose resource ails, and its neighbour."""

    def __init__(self) -> None:
        self.sick, self.fine = Service("sick"), Service("fine")
        self.opened: Log[int] = Log()
        self.handled: Log[int] = Log()
        self.shipped: Log[int] = Log()

        @self.sick.on(Placed)
        async def work(placed: Placed, pool: Pool) -> None:
            self.handled.append(placed.number)

        @self.fine.on(Shipped)
        async def ship(shipped: Shipped) -> None:
            self.shipped.append(shipped.number)

    async def goes_on(self, stage: Stage, hosted: Hosted) -> None:
        """Let the neighbour, and the service that comes again, handle what is published now."""
        handled, shipped = len(self.handled) + 1, len(self.shipped) + 1
        await stage.bus.publish(Placed(), Shipped())
        await self.handled.reaches(handled, 5)
        await self.shipped.reaches(shipped, 5)
        assert not hosted.task.done()
        assert hosted.health.ready().status == 200


def why(hosted: Hosted) -> str:
    body = hosted.health.ready().body
    assert isinstance(body, dict)
    return str(body["handlers"]["sick.work"].get("why"))


async def cancelled_by_its_library() -> None:
    connecting = asyncio.ensure_future(asyncio.sleep(60))
    connecting.cancel()
    await connecting


async def leaves() -> None:
    sys.exit("no database")


CANCELLED = "ResourceError: the task that it was opened in was cancelled from inside"


@pytest.mark.parametrize(
    ("opens", "told"),
    [
        (cancelled_by_its_library, CANCELLED),
        (leaves, "ResourceError: SystemExit: no database: none may end the process"),
    ],
)
async def test_what_would_end_a_worker_as_it_opens_is_told_and_tried_again(
    stage: Stage, opens: Callable[[], object], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two()
    there = asyncio.Event()

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        if not there.is_set():
            await opens()  # type: ignore[misc]
        yield Pool()

    async with stage.hosting(two.sick, two.fine) as hosted:
        await two.opened.reaches(3)
        assert f"cannot be opened: {told}" in why(hosted)
        assert f"while Pool was opened by {where(pool)}" in why(hosted)
        there.set()
        await two.goes_on(stage, hosted)
    assert "event=service unavailable" in caplog.text


async def test_a_resource_whose_own_task_fails_stops_its_service_and_is_opened_again(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two()
    lose, closed = asyncio.Event(), Log[int]()

    async def poll() -> None:
        await lose.wait()
        lose.clear()
        raise ConnectionError("the poller lost its connection")

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                polling = tasks.create_task(poll())
                yield Pool()
                polling.cancel()
        finally:
            closed.append(1)

    async with stage.hosting(two.sick, two.fine) as hosted:
        for number in (1, 2, 3):
            await two.goes_on(stage, hosted)
            lose.set()
            await two.opened.reaches(number + 1)
            assert len(closed) == number
        await two.goes_on(stage, hosted)
    (first, *_) = [text for text in caplog.messages if "event=service unavailable" in text]
    told = "a resource or the store failed while it was in use: ConnectionError: the poller lost its connection"
    assert f"service=sick error={told}; while Pool was closed by {where(pool)}" in first


async def test_a_cancellation_that_is_left_on_the_task_that_opened_it_is_a_failure_of_its_service(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two()
    opened_in: list[asyncio.Task[object]] = []

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        task = asyncio.current_task()
        assert task is not None
        opened_in.append(task)
        with suppress(asyncio.CancelledError):
            yield Pool()

    async with stage.hosting(two.sick, two.fine) as hosted:
        await two.goes_on(stage, hosted)
        opened_in[0].cancel()
        await two.opened.reaches(2)
        await two.goes_on(stage, hosted)
    assert f"service=sick error=a resource or the store failed while it was in use: {CANCELLED}" in caplog.text


async def test_what_is_set_wrong_ends_the_worker_in_use_too(stage: Stage) -> None:
    two = Two()

    async def refresh() -> None:
        raise ConfigurationError("POOL_SIZE is no number")

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refresh())
            yield Pool()

    with pytest.raises(ExceptionGroup) as raised:
        async with stage.hosting(two.sick, two.fine) as hosted:
            await hosted.task
    assert raised.group_contains(ConfigurationError, match="POOL_SIZE")


async def test_a_pause_outlasts_what_fails_and_an_open_breaker_does_not(stage: Stage) -> None:
    lose = asyncio.Event()
    service, handled, opened = Service("sick", middleware=[breaker(failures=1)]), Log[int](), Log[int]()

    async def poll() -> None:
        await lose.wait()
        lose.clear()
        raise ConnectionError("the poller lost its connection")

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poll())
            opened.append(1)
            yield Pool()
            polling.cancel()

    @service.on(Placed, name="paused")
    async def paused(placed: Placed, pool: Pool) -> None:
        handled.append(placed.number)

    @service.on(Shipped, name="broken", retry=fixed(2, 0.01))
    async def broken(shipped: Shipped, pool: Pool) -> None:
        if len(opened) == 1:
            raise ConnectionError
        handled.append(shipped.number)

    async with stage.hosting(service) as hosted:
        hosted.worker.pause("sick.paused")
        await stage.bus.publish(Placed(number=1), Shipped(number=2))
        flows = hosted.worker.flows
        while not flows["sick.broken"].held:
            await flows["sick.broken"].changed()
        lose.set()
        await handled.reaches(1)
        assert handled == [2]
        assert set(flows["sick.paused"].held) == {PAUSED}


async def test_each_failure_doubles_the_wait_and_one_that_worked_for_long_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosting, "LONGEST", 0.05)
    stop, waits, lasting = asyncio.Event(), list[float](), [0.0, 0.0, 0.0, 0.06, 0.0]

    async def consume(there: Opened) -> None:
        await asyncio.sleep(lasting[len(waits)])
        raise asyncio.CancelledError

    def failed(error: Exception, told: str, delay: float) -> None:
        waits.append(delay)
        if len(waits) == len(lasting):
            stop.set()

    class Shortest(Random):
        def uniform(self, least: float, most: float) -> float:
            return most

    host = Host(
        Service("sick"),
        {},
        Shortest(),
        stop,
        consume=consume,
        failed=failed,
        unclosed=lambda error: None,
        hangs=lambda what, within: None,
        left=lambda: 30,
    )
    await host.run()
    assert waits == pytest.approx([0.01, 0.02, 0.04, 0.01, 0.02])


async def test_a_resource_that_never_closes_is_named_and_holds_no_stop_up(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two()

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.Event().wait()

    async with stage.hosting(two.sick, two.fine, grace=0.01) as hosted:
        await two.goes_on(stage, hosted)
        await hosted.stop()
    (told,) = [text for text in caplog.messages if "event=resource does not close" in text]
    assert f"service=sick told=Pool, which {where(pool)} opened, does not close" in told


async def test_a_resource_closes_within_what_its_handlers_have_left_of_the_grace(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service, began = Service("sick"), Log[int]()

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        await asyncio.Event().wait()

    @service.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None:
        began.append(1)
        await asyncio.sleep(4)

    time = VirtualTime(lambda: True)
    with time.installed(), time.jumping():
        async with stage.hosting(service, grace=6) as hosted:
            await stage.bus.publish(Placed())
            await began.reaches(1)
            await hosted.stop()
    (told,) = [text for text in caplog.messages if "event=resource does not close" in text]
    assert told.endswith("after=2.0")


async def test_a_resource_that_never_closes_after_one_that_cannot_be_opened_is_named(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service, tried = Service("sick"), Log[int]()

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        try:
            yield Pool()
        finally:
            await asyncio.Event().wait()

    @service.resource
    async def number(pool: Pool) -> AsyncIterator[int]:
        tried.append(1)
        raise ConnectionError
        yield 1

    @service.on(Placed)
    async def work(placed: Placed, number: int) -> None: ...

    async with stage.hosting(service, grace=0.01):
        await tried.reaches(2)
    assert f"told=Pool, which {where(pool)} opened, does not close" in caplog.text


async def test_what_swallows_its_cancellation_as_it_closes_is_told_and_left(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two()
    monkeypatch.setattr(worker_module, "LONGEST_STOP", 0.05)
    go = asyncio.Event()

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        yield Pool()
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await go.wait()

    async with stage.hosting(two.sick, two.fine, grace=0.01) as hosted:
        await two.goes_on(stage, hosted)
        hosted.worker.stubborn = go.set
        try:
            await hosted.stop()
        finally:
            go.set()
    assert "event=worker does not end services=['sick']" in caplog.text


async def test_what_leaves_as_it_closes_is_told_and_lets_the_neighbours_finish(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    two = Two()

    @two.sick.resource
    async def pool() -> AsyncIterator[Pool]:
        two.opened.append(1)
        yield Pool()
        sys.exit("bye")

    with pytest.raises(ExceptionGroup) as raised:
        async with stage.hosting(two.sick, two.fine) as hosted:
            await two.goes_on(stage, hosted)
    assert raised.group_contains(hosting.ResourceError, match="SystemExit: bye")
    assert "event=resource not closed service=sick error=ResourceError: SystemExit: bye" in caplog.text
