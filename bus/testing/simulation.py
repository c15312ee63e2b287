"""The simulator: runs a scenario again and again, each time with other faults, and shrinks the first failure."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeAlias

from ..errors import ConfigurationError
from ..message import Ids
from ..worker import first_leaf
from .faults import Course, Fault, chosen
from .fragile import FragileTransport
from .report import Story, report
from .tester import Tester


Build: TypeAlias = Callable[[], Tester]
Scenario: TypeAlias = Callable[[Tester], Awaitable[None]]

UNSTEADY: Final = 0.05
"""How likely a step of the worker is put off a little, so that others come first."""
LITTLE: Final = 0.05
"""Seconds that a step is put off, at most."""


class SimulationFailed(AssertionError):
    """A run failed: the message tells its seed, the fewest faults that still make it fail, and what happened."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How one run ended: its error, what happened, and how far it counted."""

    error: BaseException | None
    story: Story
    counts: Mapping[str, int]


def simulate(build: Build, scenario: Scenario, *, seeds: Iterable[int] = range(1000), seed: int | None = None) -> None:
    """Run `scenario` once per seed, each time on what `build` makes anew, while faults happen to worker and broker.

    `build` returns a Tester that is not open yet; what its `resources` hold outlives a crash of the worker, as a
    database does, so they must be fresh each time. The scenario publishes, awaits `bus.settled()` and asserts what must
    hold in the end; its `bus.resources` are those of the Tester.

    The faults are chosen by the seed: the worker crashes before or after any step of it, the connection or the broker
    is lost, messages come late or twice, a publish fails, or raises although it stored, handlers are slow, the clock
    jumps. Raises SimulationFailed for the first seed that fails; `seed=4711` runs that one alone, as it was.
    """
    __tracebackhide__ = True  # pytest shows the caller's line instead
    counts = _run(build, scenario, 0, ()).counts
    for each in seeds if seed is None else [seed]:
        faults = chosen(Random(f"faults {each}"), counts)
        ran = _run(build, scenario, each, faults)
        if ran.error is not None:
            fewest, ran = _shrunk(build, scenario, each, faults, ran)
            assert ran.error is not None
            raise SimulationFailed(report(each, build, scenario, fewest, ran.error, ran.story)) from ran.error


def _shrunk(
    build: Build, scenario: Scenario, seed: int, faults: tuple[Fault, ...], ran: Ran
) -> tuple[tuple[Fault, ...], Ran]:
    """Leave out one fault after the other for as long as the run still fails."""
    for fault in faults:
        fewer = tuple(other for other in faults if other is not fault)
        without = _run(build, scenario, seed, fewer)
        if without.error is not None:
            return _shrunk(build, scenario, seed, fewer, without)
    return faults, ran


def _run(build: Build, scenario: Scenario, seed: int, faults: Iterable[Fault]) -> Ran:
    """Run the scenario once, on an event loop of its own, with the same chances for the same seed."""
    state = random.getstate()
    random.seed(seed)
    try:
        given = build()
        if not isinstance(given, Tester):
            raise ConfigurationError(f"simulate(build, …): build returned {given!r}; it must return a Tester")

        async def run() -> Ran:
            simulated = Simulated(given, seed, faults)
            return Ran(await simulated.run(scenario), simulated.trace, simulated.course.counts)

        with asyncio.Runner(loop_factory=_Loop) as runner:
            ran = runner.run(run())
    finally:
        random.setstate(state)
    if ran.error is not None and not _is_failure(ran.error):
        raise ran.error
    return ran


def _is_failure(error: BaseException) -> bool:
    """Tell whether an error is a failure of the scenario; to be skipped, or interrupted, is none."""
    if isinstance(error, Exception):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_failure, error.exceptions))
    # pytest.fail() raises what is no Exception
    pytest: Any = sys.modules.get("pytest")
    return (
        pytest is not None
        and isinstance(error, pytest.fail.Exception)
        and not isinstance(error, pytest.xfail.Exception)
    )


class _Loop(asyncio.SelectorEventLoop):
    """A loop whose clock stands until a Tester makes it jump, so that the times of a run are the same each time."""

    def time(self) -> float:
        """Return the time."""
        return 0.0


class Simulated(Tester):
    """A Tester to whose worker and broker faults happen."""

    def __init__(self, given: Tester, seed: int, faults: Iterable[Fault]) -> None:
        own = {key: value for key, value in given.resources.items() if value is not given}
        super().__init__(*given.services, resources=own, middleware=given.middleware, settings=given.settings)
        self.course = Course(faults)
        self.trace = self._happened = Story(asyncio.get_running_loop())
        self.transport = self._transport = self._fragile = FragileTransport(
            self.course, self.trace.fault, self.settings.publish_timeout
        )
        self._order = Random(f"order {seed}")
        self._ids = Ids(Random(f"ids {seed}"), os.getpid())
        self._at_step = self._step
        self._log = lambda _, process: process
        self._ends = asyncio.Event()
        self._crashed = asyncio.Event()
        self._down_for = 0.0
        self._armed = False

    async def run(self, scenario: Scenario) -> BaseException | None:
        """Run the scenario while faults happen; return what it raised, or what a worker did that came again."""
        raised: BaseException | None = None
        async with self:
            try:
                async with asyncio.TaskGroup() as tasks:
                    restarting = tasks.create_task(self._restart())
                    self._armed = True
                    try:
                        # what waits for a broker that is down must not take real time
                        with self._time.jumping():
                            await scenario(self)
                    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                        raise
                    except BaseException as error:
                        raised = error
                    finally:
                        restarting.cancel()
                        self._armed = False
            except BaseExceptionGroup as group:
                raised = first_leaf(group)
        return raised

    def _step(self) -> asyncio.Future[None] | None:
        """Let happen what is due before this step of the worker; return what the step waits for."""
        if not self._armed:
            return None
        order = self._order
        wait = order.random() * LITTLE if order.random() < UNSTEADY else 0.0
        for fault in self.course.due("step"):
            wait = max(wait, self._happen(fault))
            if self._crashed.is_set():
                return None
        return _after(wait) if wait else None

    def _happen(self, fault: Fault) -> float:
        """Let a fault happen; return the seconds that the step waits for."""
        happened = self.trace.fault
        match fault.kind:
            case "crash":
                happened(f"the worker crashes, and is down for {fault.seconds:.3g} s{self._under_way()}")
                assert self._generation is not None
                self._generation.abandon()
                self.transport.crash()
                self._armed = False
                self._crashed.set()
                self._end(fault.seconds)
            case "stop":
                happened(f"the worker stops, and is down for {fault.seconds:.3g} s")
                self._stop.set()
                self._end(fault.seconds)
            case "connection lost":
                happened("the connection is lost")
                self._fragile.lose_connection()
            case "outage":
                happened(f"the broker is down for {fault.seconds:.3g} s")
                self._fragile.stop(fault.seconds)
            case "clock jump":
                happened(f"the wall clock jumps by {fault.seconds:.3g} s")
                asyncio.get_running_loop().skipped += fault.seconds  # type: ignore[attr-defined]
            case _:
                happened(f"a step takes {fault.seconds:.3g} s")
                return fault.seconds
        return 0.0

    def _under_way(self) -> str:
        """Return what the worker was about, in words."""
        running = [handler.subscription_name for handler in +self._running]
        taken = [name for name, queue in self.transport.queues.items() if any(c.unsettled for c in queue.consumers)]
        settling = [name for name in taken if name not in running]
        told = f", while it ran {', '.join(running)}" if running else ""
        return told + (f", with {', '.join(settling)} unsettled" if settling else "")

    def _end(self, seconds: float) -> None:
        self._fragile.worker_comes_again, self._down_for = True, seconds
        self._ends.set()

    async def _restart(self) -> None:
        """Start a new worker after each that ended, by a crash or because it was told to."""
        while True:
            await self._ends.wait()
            async with asyncio.TaskGroup() as tasks:
                assert self._owner is not None
                ways = [tasks.create_task(asyncio.wait([self._owner])), tasks.create_task(self._crashed.wait())]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
            self._armed = False
            await asyncio.sleep(self._down_for)
            self._stop = asyncio.Event()
            await self.crash()
            self._ends.clear()
            self._crashed.clear()
            self._fragile.worker_comes_again, self._armed = False, True
            self._news.set()


def _after(seconds: float) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def over() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_later(seconds, over)
    return future
