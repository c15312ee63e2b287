"""Supervisor: keeps a process for each group of services, starts again what ends unasked, and answers for the whole."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeAlias

from .. import clock
from ..endpoint import Answer
from ..logs import logger
from .supervised import MARGIN


FIRST: Final = 0.25
"""Seconds before the first restart; each further one waits twice as long."""
MOST: Final = 30.0
STEADY: Final = 60.0
"""Seconds that a process must have run for its next restart to be a first one again."""
FAILED: Final = 1
MISTAKE: Final = 2
WHY: Final = {
    signal.SIGKILL: "killed from outside, perhaps because memory ran out",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code",
    signal.SIGFPE: "a crash in native code",
    signal.SIGILL: "a crash in native code",
    signal.SIGABRT: "native code gave up",
}


class Child(Protocol):
    """A process, as far as a supervisor needs it. `told` is what it said unasked: by name, the last value."""

    pid: int
    told: dict[str, Any]

    async def ended(self) -> int:
        """Wait for its end and return its exit status; a signal's number is negative."""
        ...

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        ...

    async def ask(self, method: str, path: str) -> Answer | None:
        """Return its answer; None where it gives none in time."""
        ...


Start: TypeAlias = Callable[[str, Sequence[str]], AbstractAsyncContextManager[Child]]
"""Starts the process of this name for these services."""


class Backoff:
    """How long to wait before a process that ended is started again."""

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, ran: float) -> float:
        """Return the seconds to wait after a process that ran for so many seconds."""
        delay = FIRST if ran >= STEADY else self._next
        self._next = min(2 * delay, MOST)
        return delay


class Kept:
    """One process that is kept, through its restarts."""

    def __init__(self, name: str, services: Mapping[str, Sequence[str]]) -> None:
        self.name = name
        self.services = tuple(services)
        self.handlers = [handler for handlers in services.values() for handler in handlers]
        self.child: Child | None = None
        self.state = "starting"
        self.cause = ""
        self.since = clock.now()
        self.restarts = 0
        self.once = False
        self.mistaken = False
        self.well = True

    def becomes(self, state: str, cause: str = "", child: Child | None = None) -> None:
        """Note what it is doing now, and why the last process ended; nothing forgets that."""
        self.state, self.cause, self.child, self.since = state, cause or self.cause, child, clock.now()


class Supervisor:
    """Keeps the processes, by name with the handlers of each service, that `start` starts.

    Each has `grace` seconds to stop. `tell` is given each line of a mistake that the user made, once.
    """

    def __init__(
        self,
        processes: Mapping[str, Mapping[str, Sequence[str]]],
        start: Start,
        *,
        grace: float,
        tell: Callable[[str], None],
    ) -> None:
        self.kept = [Kept(name, services) for name, services in processes.items()]
        self._start = start
        self._grace = grace
        self._tell = tell
        self._said: set[str] = set()
        self._code = 0
        self._log = logger()

    async def run(self, stop: asyncio.Event) -> int:
        """Keep the processes until `stop` is set, and return the exit status once all of them have ended.

        A mistake of the user's that a process meets before it ever ran sets `stop` too.
        """
        async with asyncio.TaskGroup() as tasks:
            for kept in self.kept:
                tasks.create_task(self._keep(kept, stop), name=kept.name)
        return self._code or (0 if all(kept.well for kept in self.kept) else FAILED)

    def kill(self) -> None:
        """Kill every process at once."""
        for kept in self.kept:
            if kept.child is not None:
                kept.child.signal(signal.SIGKILL)

    async def _keep(self, kept: Kept, stop: asyncio.Event) -> None:
        loop, backoff = asyncio.get_running_loop(), Backoff()
        while not stop.is_set():
            began = loop.time()
            code, why = await self._run(kept, stop)
            ran = loop.time() - began
            if stop.is_set():
                kept.becomes("stopped", why)
                kept.well = code in (0, -signal.SIGTERM)
            elif kept.mistaken:
                self._give_up(kept, why, stop)
                return
            else:
                await self._wait(kept, why, ran, backoff.after(ran), stop)

    async def _run(self, kept: Kept, stop: asyncio.Event) -> tuple[int | None, str]:
        """Run a process to its end; return its exit status and what that means."""
        try:
            async with self._start(kept.name, kept.services) as child:
                kept.becomes("running", child=child)
                self._log.info("process started", process=kept.name, services=list(kept.services), pid=child.pid)
                code = await self._end(kept, child, stop)
                kept.child = None
            kept.once = kept.once or "started" in child.told
            kept.mistaken = code == MISTAKE and "mistake" in child.told
            for line in child.told.get("mistake", ()):
                if line not in self._said:
                    self._said.add(line)
                    self._tell(line)
        except OSError as error:
            return None, f"it could not be started: {error.strerror or error}"
        return code, meaning(code)

    async def _end(self, kept: Kept, child: Child, stop: asyncio.Event) -> int:
        """Wait for the end of a process; once `stop` is set, ask for it, and in the end enforce it."""

        async def ask() -> None:
            await stop.wait()
            child.signal(signal.SIGTERM)
            await asyncio.sleep(self._grace + MARGIN)
            self._log.error("process killed", process=kept.name, told="it did not stop within its grace")
            child.signal(signal.SIGKILL)

        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask())
            try:
                return await child.ended()
            finally:
                asking.cancel()

    async def _wait(self, kept: Kept, why: str, ran: float, delay: float, stop: asyncio.Event) -> None:
        kept.becomes("restarting", why)
        kept.restarts += 1
        self._log.error(
            "process ended",
            process=kept.name,
            services=list(kept.services),
            cause=why,
            ran=round(ran, 2),
            restarts=kept.restarts,
            again_in=delay,
        )
        try:
            async with asyncio.timeout(delay):
                await stop.wait()
        except TimeoutError:
            return

    def _give_up(self, kept: Kept, why: str, stop: asyncio.Event) -> None:
        kept.becomes("failed", why)
        self._code = MISTAKE
        told = "its configuration is wrong: it is not started again" + ("" if kept.once else ", and all stops")
        self._log.error("process ended", process=kept.name, services=list(kept.services), cause=why, told=told)
        if not kept.once or all(each.state == "failed" for each in self.kept):
            stop.set()


def meaning(code: int) -> str:
    """Return what an exit status means: its number, or the signal by its name."""
    if code >= 0:
        return f"exit status {code}"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"signal {-code}"
    return f"{number.name}: {WHY[number]}" if number in WHY else number.name
