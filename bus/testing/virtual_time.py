"""Virtual time: the running event loop's clock may jump, so that a day of retries takes a millisecond.

The loop's clock is the only clock of the library, and tests run on the production code. So the loop itself is changed,
for as long as a Tester is open: its selector skips waits, and its `time` counts what was skipped. asyncio's own loop
keeps both where it always kept them (`_selector`, `time`): private, so all of it is in this file.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
import selectors
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .. import clock


TURNS: Final = 2
"""Looks at the outside world, without a wait, before time may jump."""
TICK: Final = 1e-7
"""Seconds by which the clock moves at each look, at least, so that no two timers are due at the same moment."""
UNEVEN: Final = (5**0.5 - 1) / 2
"""What a tick differs by from the one before: by even ticks two timers may meet, and rounding choose between them."""
BREATH: Final = 0.01
"""Seconds of real time between two looks while something outside the loop may still wake it."""
SILENCE = 5.0
"""Seconds of real time in which a thread that was there before may still wake the loop, where nothing else can."""
SPIN: Final = 10_000
"""Turns of the loop in a row that take no time, though each of them finds work: then time passes all the same."""
SPUN: Final = 0.001
"""Seconds that each such turn takes from there on: the same on any machine."""
RUNNING: Final = asyncio.BaseEventLoop.run_forever.__code__


def _real() -> float:
    """Return the seconds of real time, by a clock that nobody stops for a test: freezegun stops `monotonic`."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic()


class NoVirtualTime(RuntimeError):
    """The running loop is not asyncio's own selector loop, so its clock cannot jump."""


class VirtualTime:
    """Lets the running loop's clock jump while somebody asks for it, and only when nothing real can happen before.

    `busy()` tells whether a handler is running: then time jumps only if nothing outside the loop can wake it.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.SelectorEventLoop):
            raise NoVirtualTime(
                f"Tester needs asyncio's own event loop, and this test runs on {type(loop).__module__}: give the test "
                "pytest-asyncio's default loop, without uvloop"
            )
        if hasattr(loop, "skipped"):
            raise NoVirtualTime(
                "a Tester is open on this event loop already; close it first, or give one both services"
            )
        self._loop: Any = loop
        self._busy = busy
        self._askers: list[_Asker] = []
        self._watchers: list[Callable[[], None]] = []
        self._now = 0.0
        self._part = 0.0
        self._jobs = 0
        self._late = False
        self._executors: set[concurrent.futures.Executor] = set()
        self._spun = 0
        self._looked = _real()
        self._threads = {thread for thread in threading.enumerate() if not _idle(thread)}
        self.stands: Callable[[], None] = lambda: None
        """Called when time will not come to anything: nothing is left that could happen, or real time is over."""
        self.turned: Callable[[], None] = lambda: None
        """Called at each turn of the loop, before it looks at what comes next."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Change the loop; on the way out its clock goes on from where it is, so that old timers stay right."""
        loop = self._loop
        selector, before, run_in_executor = loop._selector, loop.time, loop.run_in_executor
        real_time = before.real_time if isinstance(before, _Ahead) else before
        loop.skipped, self._now = 0.0, before()
        loop.time = self._time
        loop.run_in_executor = self._counted(run_in_executor)
        loop._selector = _SkippingSelector(selector, self._wait)
        clock.JUMPING.append(loop)
        try:
            yield
        finally:
            clock.JUMPING.remove(loop)
            loop._selector = selector
            loop.run_in_executor = run_in_executor
            del loop.skipped
            loop.time = _Ahead(real_time, self._now - real_time())

    def _time(self) -> float:
        """Return the loop's clock: it moves by jumps and by real waits, not by what the machine takes to compute.

        So the same test has the same order on a busy machine; and what was asked for first is due first.
        """
        # after half a year a float has no room for the tick: a clock that stands still would hang the loop
        self._part = (self._part + UNEVEN) % 1
        self._now = max(self._now + TICK * (1 + self._part), math.nextafter(self._now, math.inf))
        return self._now

    def _really(self, select: Callable[[float | None], list[Any]], timeout: float | None) -> list[Any]:
        """Wait in real time."""
        began = _real()
        ready = select(timeout)
        self._now += _real() - began
        return ready

    @contextmanager
    def jumping(
        self,
        *,
        until: float = math.inf,
        within: float = math.inf,
        arrived: Callable[[], None] = lambda: None,
        late: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Let time jump from timer to timer: up to `until` on the loop's clock, for `within` real seconds at most.

        `arrived` is called once it is `until` and nothing is left to do, and `late` once when the real seconds are
        over. Several may ask at once: it jumps no further than each of them allows.
        """
        asker = _Asker(until, _real() + within, arrived, late)
        self._askers.append(asker)
        try:
            yield
        finally:
            self._askers.remove(asker)

    @contextmanager
    def watched(self, stands: Callable[[], None]) -> Iterator[None]:
        """Call `stands` when nothing is left that could happen while nobody lets time jump, once."""
        self._watchers.append(stands)
        try:
            yield
        finally:
            if stands in self._watchers:
                self._watchers.remove(stands)

    def why(self) -> str:
        """Return why the clock stands, in words."""
        if self._busy() and (outside := self.outside()):
            return f"the clock stands because {outside}"
        if self._late:
            return "the real seconds that it may take are over, and timers go on and on"
        return "the clock may jump, but there is no timer to jump to"

    def outside(self) -> str | None:
        """Return what outside of the loop may wake it, in words; None if nothing can."""
        if self._jobs:
            return f"{self._jobs} job(s) of an executor are running"
        # jobs are counted, so what else these executors' threads do is wait for one
        known = self._threads.union(*(getattr(executor, "_threads", ()) for executor in self._executors))
        frames = sys._current_frames()
        for thread in threading.enumerate():
            if thread is threading.main_thread() or _idle(thread):
                continue
            if thread not in known or _is_asyncios(frames.get(thread.ident or 0)):
                return f"the thread {thread.name!r} is running"
        # the loop wakes itself by one socket
        if opened := len(self._loop._selector.get_map()) - 1:
            return f"{opened} socket(s) or pipe(s) are open"
        return None

    def _counted(self, run_in_executor: Callable[..., Any]) -> Callable[..., Any]:
        def run(executor: concurrent.futures.Executor | None, function: Callable[..., Any], *arguments: Any) -> Any:
            future = run_in_executor(executor, function, *arguments)
            self._executors.add(executor or self._loop._default_executor)
            self._jobs += 1
            future.add_done_callback(self._job_done)
            return future

        return run

    def _job_done(self, _: object) -> None:
        self._jobs -= 1

    def _wait(self, select: Callable[[float | None], list[Any]], timeout: float | None) -> list[Any]:
        """Do what the loop's selector does, but skip the wait where time may jump."""
        self.turned()
        if not self._askers:
            self._spun = 0
            if timeout is None and self._watchers and self.outside() is None:
                return self._really(select, SILENCE) or self._tell()
            return self._really(select, timeout) if timeout is None or timeout > 0 else select(0)
        late = [asker for asker in self._askers if _real() > asker.deadline]
        self._late = bool(late)
        if late:
            self.stands()
            for asker in late:
                asker.late()
                asker.late = lambda: None
            return select(0)
        until = min(asker.until for asker in self._askers)
        if timeout is not None and timeout <= 0:
            return self._working(select, until)
        self._spun = 0
        # asked before the last look: what ends in between has woken the selector by then
        held = self._busy() and self.outside() is not None
        for _ in range(TURNS):
            if ready := select(0):
                return ready
        left = until - self._now
        if left <= 0:
            return self._arrived(select)
        if left < math.inf:
            timeout = left if timeout is None else min(left, timeout)
        if held:
            return self._really(select, BREATH if timeout is None else min(timeout, BREATH))
        if timeout is None:
            self.stands()
            # what wakes the loop may yet come from outside, and takes real time
            return self._really(select, BREATH) if self.outside() else select(0)
        self._now += timeout
        self._loop.skipped += timeout
        return []

    def _tell(self) -> list[Any]:
        while self._watchers:
            self._watchers.pop()()
        return []

    def _working(self, select: Callable[[float | None], list[Any]], until: float) -> list[Any]:
        """Look what is ready beside the work that there is; where that never ends, time passes nevertheless."""
        self._spun += 1
        began, self._looked = self._looked, _real()
        if self._spun > SPIN:
            if self._now >= until:
                return self._arrived(select)
            real = self._busy() and self.outside() is not None
            passed = min(self._looked - began if real else SPUN, until - self._now)
            self._now += passed
            if not real:
                self._loop.skipped += passed
        return select(0)

    def _arrived(self, select: Callable[[float | None], list[Any]]) -> list[Any]:
        for asker in self._askers:
            if asker.until <= self._now:
                asker.arrived()
        return select(0)


@dataclass(slots=True, eq=False)
class _Asker:
    """Somebody who lets time jump: up to a moment of the loop's clock, and until a moment of real time."""

    until: float
    deadline: float
    arrived: Callable[[], None]
    late: Callable[[], None]


def _idle(thread: threading.Thread) -> bool:
    """Tell whether the thread is one of anyio's workers and waits for a job: they say it themselves."""
    return thread in getattr(thread, "idle_workers", ())


def _is_asyncios(frame: types.FrameType | None) -> bool:
    """Tell whether a thread that stands here works for some event loop: it runs code that knows asyncio, and no loop.

    So does that of a connection which has one, and whether it rests or is about to begin cannot be seen.
    """
    knows = False
    while frame is not None:
        if frame.f_code is RUNNING:
            return False
        knows = knows or frame.f_globals.get("asyncio") is asyncio
        frame = frame.f_back
    return knows


@dataclass(frozen=True, slots=True)
class _Ahead:
    """The loop's clock after a Tester: real time, and what the clock is ahead of it."""

    real_time: Callable[[], float]
    seconds: float

    def __call__(self) -> float:
        return self.real_time() + self.seconds


class _SkippingSelector(selectors.BaseSelector):
    """The loop's own selector, whose waits are asked for through `wait`."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        wait: Callable[[Callable[[float | None], list[Any]], float | None], list[Any]],
    ) -> None:
        self._selector = selector
        self._wait = wait

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._wait(self._selector.select, timeout)

    def close(self) -> None:
        self._selector.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()
