"""A worker and its broker in one run of a simulation, with the faults that happen to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from inspect import isawaitable
from random import Random
from typing import Any, Final, TypeAlias, TypeVar

from ..clock import Seconds
from ..errors import ConfigurationError
from ..event import Event
from ..failure import described, first_leaf
from ..message import Ids
from ..service import awaited
from .asked import check_inside
from .ending import raised_by
from .faults import Course, Fault
from .fragile import FragileTransport
from .generation import in_a_worker
from .leftovers import close_generators_left, end_tasks_left
from .patience import OutOfPatience, Patience
from .report import Story
from .tester import MOST_DELIVERIES, WITHIN, Tester
from .unsettled import NotSettled, not_come


E = TypeVar("E", bound=Event)
Scenario: TypeAlias = Callable[[Tester], Awaitable[None]]

UNSTEADY: Final = 0.05
"""How likely a step of the worker is put off a little, so that others come first."""
LITTLE: Final = 0.05
"""Seconds that a step is put off, at most."""
OPENING: Final = 300.0
"""Virtual seconds that a worker which came again tries to open its resources; then the run has failed."""


class StandingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands until a Tester makes it jump, so that the times of a run are the same each time."""

    def time(self) -> float:
        """Return the time."""
        return 0.0

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Tell of an error, but not that a crashed worker's generator cannot be closed: no code of it may run."""
        if not getattr(context.get("asyncgen"), "ag_running", False):
            super().call_exception_handler(context)


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
        self._there = asyncio.Event()
        self._down_for = 0.0
        self._armed = False
        self._slowed = False
        self._came = False
        self._patience = Patience()
        self._unsettled = 0

    async def run(self, scenario: Scenario) -> BaseException | None:
        """Run the scenario while faults happen; return what it raised, or what a worker did that came again."""
        raised: BaseException | None = None
        try:
            async with self:
                playing = scenario(self)
                if not isawaitable(playing):
                    raise ConfigurationError(
                        f"simulate(build, scenario): the scenario must be an `async def` with one parameter, the bus, "
                        f"and {scenario!r} returned {playing!r}"
                    )
                raised = await self._run(playing)
            await end_tasks_left()
            await close_generators_left()
        except NotSettled as stuck:
            # its worker did not end: that says more than what came of it
            raised = stuck if raised is None or isinstance(raised, NotSettled) else raised
        except Exception as unclosed:
            if self._owner is None or unclosed is not raised_by(self._owner):
                raise
            raised = raised or unclosed
        return raised

    async def _run(self, playing: Awaitable[None]) -> BaseException | None:
        raised: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                restarting = tasks.create_task(self._restart())
                self._armed = True
                try:
                    await self._play(playing)
                except asyncio.CancelledError as error:
                    if (task := asyncio.current_task()) and task.cancelling():
                        raise
                    raised = error  # its own, which nobody asked for
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as error:
                    raised = error
                finally:
                    restarting.cancel()
                    self._armed = False
                    self._unsettled = 0 if self._fragile.waited_for else self._at_work + sum(self._left().values())
        except BaseExceptionGroup as group:
            raised = first_leaf(group)
        return raised

    async def _play(self, playing: Awaitable[None]) -> None:
        self._time.turned = self._patience.turn
        try:
            # what waits for a broker that is down must not take real time
            with self._time.jumping():
                await self._patience.while_it_lasts(playing)
        except OutOfPatience as error:
            left = [f"{count} {what}" for what, count in self._left().items()] or ["nothing is left on the bus"]
            told = not_come(f"the scenario waits for what does not come: {error}", left, self._running)
            raise told.with_traceback(error.__traceback__) from None

    async def settled(self, *, within: Seconds = WITHIN, deliveries: int = MOST_DELIVERIES) -> None:
        """Return when every delivery, retry and delay has run. Raises as `Tester.settled`."""
        async with self._waiting():
            await super().settled(within=within, deliveries=deliveries)

    async def advance(self, by: Seconds, *, within: Seconds = WITHIN) -> None:
        """Let `by` seconds pass. Raises as `Tester.advance`."""
        async with self._waiting():
            await super().advance(by, within=within)

    async def request(self, event: Event, reply: type[E], *, timeout: Seconds, within: Seconds = WITHIN) -> E:
        """Publish an event and return the first event of the class `reply` that it causes, as `Tester.request`."""
        async with self._waiting():
            return await super().request(event, reply, timeout=timeout, within=within)

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        """Trust the scenario that waits by the bus, and note that it did, for what it published meanwhile too."""
        try:
            async with self._patience.trusted():
                yield
        finally:
            self._fragile.waited_for = self._fragile.waited_for or not in_a_worker()

    def _clock_stands(self) -> None:
        super()._clock_stands()
        if self._time.outside() is None:
            self._patience.asleep()

    def counts(self) -> Mapping[str, int]:
        """Return how far the course counted, and what was left by a scenario that did not let the bus go on."""
        return {**self.course.counts, "left": self._unsettled}

    def threaded(self) -> list[str]:
        """Return the plain functions that ran, each in a thread, by their handlers' names."""
        return sorted({run.handler.subscription_name for run in self._runs if not awaited(run.handler.function)})

    async def _available(self) -> None:
        """Wait for what cannot be opened again, as any worker does; a first time it is raised to the test."""
        if not self._came:
            await super()._available()
            self._came = True
        loop = asyncio.get_running_loop()
        until = loop.time() + OPENING
        for name, error in self.worker.unavailable.items():
            self._happened.append(f"{name} waits for a resource or its store: {described(error)}")
        with self._working_on():
            while self.worker.unavailable and not self._ends.is_set():
                self._require_owner()
                if loop.time() > until:
                    raise next(iter(self.worker.unavailable.values()))
                await asyncio.sleep(1)

    def _left_open(self) -> str | None:
        """Return what was not closed in time, unless a step took so long that it may have been the reason."""
        return None if self._slowed else super()._left_open()

    def _require_resources(self) -> None:
        """Wait for what fails in use, as any worker does."""

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
                self._die(fault.seconds)
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
                self._slowed = True
                return fault.seconds
        return 0.0

    def _under_way(self) -> str:
        """Return what the worker was about, in words."""
        running = [handler.subscription_name for handler in +self._running]
        taken = [name for name, queue in self.transport.queues.items() if any(c.unsettled for c in queue.consumers)]
        settling = [name for name in taken if name not in running]
        told = f", while it ran {', '.join(running)}" if running else ""
        return told + (f", with {', '.join(settling)} unsettled" if settling else "")

    def _die(self, seconds: float) -> None:
        assert self._generation is not None
        self._generation.abandon()
        self.transport.crash()
        self._armed = False
        self._crashed.set()
        self._end(seconds)

    def _end(self, seconds: float) -> None:
        self._fragile.worker_comes_again, self._down_for = True, seconds
        self._there.clear()
        self._ends.set()

    async def crash(self) -> None:
        """Let the worker die without a goodbye, and start another, as `Tester.crash`."""
        check_inside("crash()", self._outside)
        self._die(0.0)
        await self._there.wait()

    async def _restart(self) -> None:
        """Start a new worker after each that ended, by a crash or because it was told to; it may end as it starts."""
        while True:
            await self._ends.wait()
            assert self._owner is not None
            with self._working_on():
                await self._unless_crashed(asyncio.wait([self._owner]))
            self._armed = False
            await asyncio.sleep(self._down_for)
            self._stop = asyncio.Event()
            self._ends.clear()
            self._crashed.clear()
            self._armed = True
            await self._unless_crashed(super().crash())
            if not self._ends.is_set():
                self._fragile.worker_comes_again = False
                self._there.set()
                self._news.set()

    async def _unless_crashed(self, what: Coroutine[Any, Any, Any]) -> None:
        """Await it for as long as the worker does not crash."""
        async with asyncio.TaskGroup() as tasks:
            ways = [tasks.create_task(what), tasks.create_task(self._crashed.wait())]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()


def _after(seconds: float) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def over() -> None:
        if not future.done():
            future.set_result(None)

    loop.call_later(seconds, over)
    return future
