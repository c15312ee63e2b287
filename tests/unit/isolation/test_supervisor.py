"""The supervisor's decisions, with processes that the test plays and time that jumps."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from bus.endpoint import Answer
from bus.isolation.supervisor import MOST, STEADY, Backoff, Supervisor, meaning
from bus.testing.virtual_time import VirtualTime


GRACE = 30.0
PROCESSES = {"kitchen": {"kitchen": ["kitchen.cook"]}, "till": {"till": ["till.charge", "till.refund"]}}


class Played:
    """A process that ends when the test says so, or a while after a signal."""

    def __init__(self, name: str, begun: float, takes: float) -> None:
        self.pid = 4711
        self.told: dict[str, Any] = {}
        self.name = name
        self.begun = begun
        self.signals: list[int] = []
        self._takes = takes
        self._end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ended(self) -> int:
        return await self._end

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.ends(-number)
        else:
            asyncio.get_running_loop().call_later(self._takes, self.ends, 0)

    def ends(self, code: int, **told: Any) -> None:
        self.told |= told
        if not self._end.done():
            self._end.set_result(code)

    async def ask(self, method: str, path: str) -> Answer | None:
        return None


class Stage:
    """A supervisor, and the processes that it started, in their order."""

    def __init__(self) -> None:
        self.started: list[Played] = []
        self.told: list[str] = []
        self.takes = 1.0
        self.cannot = 0
        self.stop = asyncio.Event()
        self.supervisor = Supervisor(PROCESSES, self.start, grace=GRACE, tell=self.told.append)

    @asynccontextmanager
    async def start(self, name: str, services: Sequence[str]) -> AsyncIterator[Played]:
        if self.cannot:
            self.cannot -= 1
            raise OSError(12, "Cannot allocate memory")
        self.started.append(Played(name, asyncio.get_running_loop().time(), self.takes))
        yield self.started[-1]

    def of(self, name: str) -> list[Played]:
        return [process for process in self.started if process.name == name]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(3600):
            while not condition():
                await asyncio.sleep(0.01)

    async def crash(self, name: str, after: float = 1.0, code: int = -signal.SIGSEGV) -> float:
        """Let a process end after a while; return how long it took until it was started again."""
        before = len(self.of(name))
        await asyncio.sleep(after)
        ended = asyncio.get_running_loop().time()
        self.of(name)[-1].ends(code, started=1)
        await self.until(lambda: len(self.of(name)) > before)
        return self.of(name)[-1].begun - ended


@asynccontextmanager
async def staged() -> AsyncIterator[tuple[Stage, asyncio.Task[int]]]:
    """Play a supervisor in virtual time; it is told to stop in the end."""
    time = VirtualTime(lambda: False)
    with time.installed(), time.jumping():
        stage = Stage()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(stage.supervisor.run(stage.stop))
            await stage.until(lambda: len(stage.started) + stage.cannot == len(PROCESSES))
            yield stage, running
            stage.stop.set()


@pytest.fixture
def lines() -> Iterator[Any]:
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_what_crashes_is_started_again_with_its_cause_and_stops_nobody_else(lines: Any) -> None:
    async with staged() as (stage, _):
        await stage.crash("kitchen")
        assert len(stage.of("till")) == 1
        assert stage.of("till")[0].signals == []
    (ended,) = [line for line in lines if line["event"] == "process ended"]
    assert (ended["process"], ended["services"]) == ("kitchen", ["kitchen"])
    assert ended["cause"] == "SIGSEGV: a crash in native code"
    assert (ended["log_level"], ended["restarts"], ended["again_in"]) == ("error", 1, 0.25)


async def test_each_restart_waits_twice_as_long_up_to_a_limit_and_anew_after_it_ran_well(lines: Any) -> None:
    async with staged() as (stage, _):
        waits = [await stage.crash("kitchen") for _ in range(10)]
        assert waits == pytest.approx([0.25, 0.5, 1, 2, 4, 8, 16, MOST, MOST, MOST], abs=0.1)
        assert await stage.crash("kitchen", after=STEADY + 1) == pytest.approx(0.25, abs=0.1)
        assert await stage.crash("kitchen") == pytest.approx(0.5, abs=0.1)
        assert await stage.crash("till") == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("code", [0, 1, 2, 3, -signal.SIGTERM])
async def test_whatever_ends_unasked_is_started_again(code: int, lines: Any) -> None:
    async with staged() as (stage, _):
        await stage.crash("kitchen", code=code)


async def test_a_stop_is_passed_on_and_waits_for_all_of_them(lines: Any) -> None:
    async with staged() as (stage, running):
        stage.stop.set()
        assert await running == 0
    assert [process.signals for process in stage.started] == [[signal.SIGTERM]] * 2


async def test_what_does_not_stop_within_its_grace_is_killed_and_tells_in_the_exit_status(lines: Any) -> None:
    async with staged() as (stage, running):
        loop = asyncio.get_running_loop()
        kitchen = stage.of("kitchen")[0]
        kitchen._takes = 10_000
        began = loop.time()
        stage.stop.set()
        assert await running == 1
        assert GRACE < loop.time() - began < 2 * GRACE
    assert kitchen.signals == [signal.SIGTERM, signal.SIGKILL]
    assert [line["process"] for line in lines if line["event"] == "process killed"] == ["kitchen"]


async def test_a_stop_does_not_wait_for_a_restart(lines: Any) -> None:
    async with staged() as (stage, running):
        for _ in range(9):
            await stage.crash("kitchen")
        stage.of("kitchen")[-1].ends(1, started=1)
        await stage.until(lambda: stage.supervisor.kept[0].state == "restarting")
        began = asyncio.get_running_loop().time()
        stage.stop.set()
        assert await running == 0
        assert asyncio.get_running_loop().time() - began < MOST / 2
    assert len(stage.of("kitchen")) == 10


async def test_a_mistake_at_the_start_is_said_once_and_ends_the_whole(lines: Any) -> None:
    async with staged() as (stage, running):
        for process in stage.started:
            process.ends(2, mistake=["the login was refused"])
        assert await running == 2
    assert stage.told == ["the login was refused"]
    assert len(stage.started) == 2


async def test_a_mistake_once_it_ran_ends_that_process_alone_and_for_good(lines: Any) -> None:
    async with staged() as (stage, running):
        stage.of("kitchen")[0].ends(2, started=0, mistake=[])
        await asyncio.sleep(1000)
        assert len(stage.started) == 2
        assert stage.supervisor.kept[0].state == "failed"
        assert stage.of("till")[0].signals == []
        stage.of("till")[0].ends(2, started=0, mistake=[])
        assert await running == 2


async def test_what_cannot_be_started_is_tried_again(lines: Any) -> None:
    async with staged() as (stage, _):
        stage.cannot = 2
        stage.of("kitchen")[0].ends(1, started=1)
        await stage.until(lambda: len(stage.of("kitchen")) == 2)
    causes = [line["cause"] for line in lines if line["event"] == "process ended"]
    assert causes == ["exit status 1", *["it could not be started: Cannot allocate memory"] * 2]


async def test_a_second_signal_kills_what_runs(lines: Any) -> None:
    async with staged() as (stage, running):
        stage.stop.set()
        await asyncio.sleep(0)
        stage.supervisor.kill()
        assert await running == 1
    assert [process.signals[-1] for process in stage.started] == [signal.SIGKILL] * 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "exit status 0"),
        (1, "exit status 1"),
        (-signal.SIGKILL, "SIGKILL: killed from outside, perhaps because memory ran out"),
        (-signal.SIGUSR1, "SIGUSR1"),
        (-99, "signal 99"),
    ],
)
def test_the_end_of_a_process_is_told_by_its_name(code: int, told: str) -> None:
    assert meaning(code) == told


def test_the_wait_before_a_restart_is_bounded() -> None:
    backoff = Backoff()
    assert max(backoff.after(0) for _ in range(100)) == MOST
