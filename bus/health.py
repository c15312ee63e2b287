"""Health: what an orchestrator asks a worker over HTTP, and the pauses that an operator asks for on its machine.

It is answered in a thread, so that a blocked event loop keeps nobody from hearing who blocks it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from anyio.from_thread import start_blocking_portal

from .endpoint import Answer, Reply, Request, listening, wanted
from .errors import ConfigurationError
from .logs import Lines
from .metrics import Metric, text
from .middleware import breaker
from .watchdog import Watchdog
from .worker import MOVING, PAUSED, Worker


WITHIN: Final = 1.5
"""Seconds that the worker's loop has to say whether it is ready; what stands for so long is known to be blocked."""
LOST: Final = "Log lines that could not be written: the disk is full, or nobody reads them any more."


@asynccontextmanager
async def served(health: Health, http: str) -> AsyncIterator[int | None]:
    """Answer for a worker at `http` ("host:port") meanwhile; "" serves nothing. Yields the port.

    `/metrics` is answered while the loop is blocked, `/readyz` by who blocks it; all else waits for the loop. Raises
    ConfigurationError where it cannot listen.
    """
    if not http:
        yield None
        return
    loop = asyncio.get_running_loop()

    def answering(asked: Request, reply: Reply) -> None:
        if wanted(asked) == ("metrics", ""):
            reply(health.metrics())
        else:
            once = _first(reply)
            beside = asyncio.get_running_loop()
            loop.call_soon_threadsafe(lambda: _tell(beside, once, health.answer(asked)))
            if wanted(asked) == ("readyz", ""):
                beside.call_later(WITHIN, lambda: health.tell_blocked(once))

    with start_blocking_portal(name="health") as portal:
        # a signal that came to this thread would not wake the main one from what blocks it
        portal.call(signal.pthread_sigmask, signal.SIG_BLOCK, signal.valid_signals())
        with portal.wrap_async_context_manager(listening(answering, http)) as port:
            yield port


def _first(reply: Reply) -> Reply:
    """Return the reply, which takes one answer."""
    left = [reply]
    return lambda answer: left.pop()(answer) if left else None


def _tell(loop: asyncio.AbstractEventLoop, reply: Reply, answer: Answer) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(reply, answer)


@dataclass(slots=True)
class Health:
    """What is asked of one worker."""

    worker: Worker
    stop: asyncio.Event
    watchdog: Watchdog

    def answer(self, asked: Request) -> Answer:
        """Return the answer to a request."""
        match wanted(asked):
            case ("livez", _):
                return Answer(200, "ok")
            case ("readyz", _):
                return self.ready()
            case ("metrics", _):
                return self.metrics()
            case (verb, name):
                return self._hold(verb, name)
            case Answer() as answer:
                return answer

    def ready(self) -> Answer:
        """Return whether every handler consumes, and the state of each."""
        states = {name: self._state(name) for name in self.worker.flows}
        ready = all(state["state"] != "not consuming" for state in states.values())
        blocked = self._blocked()
        status = "stopping" if self.stop.is_set() else "not ready" if blocked or not ready else "ready"
        told: dict[str, Any] = {"status": status, "handlers": states} | blocked
        return Answer(200 if status == "ready" else 503, told)

    def metrics(self) -> Answer:
        """Return the numbers; in any thread."""
        lost = Metric("tidegate_log_lines_lost_total", "counter", LOST, [({}, float(Lines.lost))])
        return Answer(200, text([*self.watchdog.metrics(), lost]))

    def tell_blocked(self, reply: Reply) -> None:
        """Answer that the worker is not ready, and who blocks its loop, if anybody does; in any thread."""
        if blocked := self._blocked():
            reply(Answer(503, {"status": "not ready"} | blocked))

    def _blocked(self) -> dict[str, Any]:
        blocked = self.watchdog.blocked
        return {} if blocked is None else {"blocked": blocked[0].fields() | {"seconds": round(blocked[1], 2)}}

    def _state(self, name: str) -> dict[str, Any]:
        """Return a handler's state, and why it is none that consumes all that it may."""
        flow, consumer = self.worker.flows[name], self.worker.consumers.get(name)
        counts = {"counts": dict(flow.counts)} if flow.counts else {}
        if (refused := self.worker.refused.get(name)) is not None:
            return {"state": "not consuming", "why": refused} | counts
        if consumer is None:
            why = "it starts, waits for the broker, or closes what failed"
            return {"state": "not consuming", "why": why} | counts
        if MOVING in flow.held:
            return {"state": "moving", "why": "its queue is moved to other arguments"} | counts
        if not consumer.consuming:
            return {"state": "not consuming", "why": "no connection to the broker, or no queue there"} | counts
        if PAUSED in flow.held:
            return {"state": "paused"} | counts
        if (unsettled := flow.held.get(breaker.HOLD)) is not None:
            why = "it tries one message at a time" if unsettled else "it waits for its cool-down"
            return {"state": "breaker open", "why": why} | counts
        return {"state": "consuming"} | counts

    def _hold(self, verb: str, name: str) -> Answer:
        try:
            (self.worker.pause if verb == "pause" else self.worker.resume)(name)
        except ConfigurationError as error:
            return Answer(404, str(error))
        return Answer(200, f"{verb}d {name}")
