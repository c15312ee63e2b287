"""Health: what an orchestrator asks a worker over HTTP, and the pauses that an operator asks for on its machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from .endpoint import Answer, Reply, Request, listening, wanted
from .errors import ConfigurationError
from .metrics import text
from .middleware import breaker
from .watchdog import Watchdog
from .worker import MOVING, PAUSED, Worker


@asynccontextmanager
async def served(health: Health, http: str) -> AsyncIterator[int | None]:
    """Answer for a worker at `http` ("host:port") meanwhile; "" serves nothing. Yields the port.

    Raises ConfigurationError where it cannot listen.
    """

    def answering(asked: Request, reply: Reply) -> None:
        reply(health.answer(asked))

    async with listening(answering, http) as port:
        yield port


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
                return Answer(200, text(self.watchdog.metrics()))
            case (verb, name):
                return self._hold(verb, name)
            case Answer() as answer:
                return answer

    def ready(self) -> Answer:
        """Return whether every handler consumes, and the state of each."""
        states = {name: self._state(name) for name in self.worker.flows}
        ready = all(state["state"] != "not consuming" for state in states.values())
        blocked = self.watchdog.blocked
        status = "stopping" if self.stop.is_set() else "ready" if ready and blocked is None else "not ready"
        told: dict[str, Any] = {"status": status, "handlers": states}
        if blocked is not None:
            told["blocked"] = blocked[0].fields() | {"seconds": round(blocked[1], 2)}
        return Answer(200 if status == "ready" else 503, told)

    def _state(self, name: str) -> dict[str, Any]:
        """Return a handler's state, and why it is none that consumes all that it may."""
        flow, consumer = self.worker.flows[name], self.worker.consumers.get(name)
        counts = {"counts": dict(flow.counts)} if flow.counts else {}
        if (refused := self.worker.refused.get(name)) is not None:
            return {"state": "not consuming", "why": refused} | counts
        if consumer is None:
            return {"state": "not consuming", "why": "the worker starts, or waits for the broker"} | counts
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
