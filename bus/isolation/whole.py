"""Whole: what a supervisor answers of all its processes, on the one endpoint that an app has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from ..endpoint import Answer, Reply, Request, listening, wanted
from ..logs import logger
from ..metrics import Metric, merged, text
from .supervisor import Kept


LEFT: Final = "if /readyz does not show it, it was not done, and will not be"


@dataclass(frozen=True, slots=True)
class Whole:
    """The processes of one supervisor, and whether it stops."""

    kept: Sequence[Kept]
    stop: asyncio.Event

    async def answer(self, asked: Request) -> Answer:
        """Return the answer to a request, however long a process takes for its own."""
        match wanted(asked):
            case ("livez", _):
                return Answer(200, "ok")
            case ("readyz", _):
                return await self.ready()
            case ("metrics", _):
                return await self.metrics()
            case (_, name):
                return await self._hold(name, asked)
            case Answer() as answer:
                return answer

    async def ready(self) -> Answer:
        """Return the state of each process and of each handler."""
        answers = await self._ask("GET", "/readyz")
        handlers: dict[str, Any] = {}
        processes: dict[str, Any] = {}
        for kept, answer in zip(self.kept, answers, strict=True):
            told = answer.body if answer is not None and isinstance(answer.body, dict) else {}
            blocked = {"blocked": told["blocked"]} if "blocked" in told else {}
            state = "blocked" if blocked else _state(kept, answered=bool(told))
            processes[kept.name] = _process(kept, state) | blocked
            dead = {"state": "not consuming", "why": f"its process is {state}"}
            handlers |= told.get("handlers") or dict.fromkeys(kept.handlers, dead)
        ready = all(answer is not None and answer.status == 200 for answer in answers)
        status = "stopping" if self.stop.is_set() else "ready" if ready else "not ready"
        return Answer(
            200 if status == "ready" else 503, {"status": status, "processes": processes, "handlers": handlers}
        )

    async def metrics(self) -> Answer:
        """Return the numbers of every process that tells them, and of their lives."""
        answers = await self._ask("GET", "/metrics")
        up = [
            ({"process": kept.name}, float(answer is not None)) for kept, answer in zip(self.kept, answers, strict=True)
        ]
        restarts = [({"process": kept.name}, float(kept.restarts)) for kept in self.kept]
        own = text(
            [
                Metric("tidegate_process_up", "gauge", "Whether a process runs and answers.", up),
                Metric("tidegate_process_restarts_total", "counter", "Restarts of what ended unasked.", restarts),
            ]
        )
        told = {
            kept.name: answer.body
            for kept, answer in zip(self.kept, answers, strict=True)
            if answer is not None and isinstance(answer.body, str)
        }
        return Answer(200, merged(own, told))

    async def _ask(self, method: str, path: str) -> list[Answer | None]:
        """Ask every process at once; None where there is none, or no answer in time."""

        async def ask(kept: Kept) -> Answer | None:
            return None if kept.child is None else await kept.child.ask(method, path)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(kept)) for kept in self.kept]
        return [task.result() for task in asked]

    async def _hold(self, name: str, asked: Request) -> Answer:
        for kept in self.kept:
            if name in kept.services or name in kept.handlers:
                answer = None if kept.child is None else await kept.child.ask("POST", asked.path)
                return answer or Answer(503, f"process {kept.name} does not answer: {LEFT}")
        for kept in self.kept:
            if name == kept.name:
                return await self._hold_all(kept, asked)
        known = sorted({name for kept in self.kept for name in (kept.name, *kept.services, *kept.handlers)})
        return Answer(404, f"there is no process, service or handler {name!r}; there are {', '.join(known)}")

    async def _hold_all(self, kept: Kept, asked: Request) -> Answer:
        """Pause or resume every service of a process; the answer is that of the first that cannot be."""
        verb = asked.path.strip("/").partition("/")[0]
        for service in kept.services:
            answer = await self._hold(service, replace(asked, path=f"/{verb}/{service}"))
            if answer.status != 200:
                return answer
        return Answer(200, f"{verb}d {', '.join(kept.services)}")


def _state(kept: Kept, *, answered: bool) -> str:
    if kept.child is None or answered:
        return kept.state
    return "not answering" if "answering" in kept.child.told else "starting"


def _process(kept: Kept, state: str) -> dict[str, Any]:
    told: dict[str, Any] = {"state": state, "services": list(kept.services), "restarts": kept.restarts}
    if kept.child is not None:
        told["pid"] = kept.child.pid
    if kept.cause:
        told["cause"] = kept.cause
    return told | {"since": kept.since.isoformat(timespec="seconds")}


@asynccontextmanager
async def answering(whole: Whole, http: str) -> AsyncIterator[int | None]:
    """Answer for all processes at `http` meanwhile; "" serves nothing. Yields the port; raises as `listening` does."""

    async def give(asked: Request, reply: Reply) -> None:
        try:
            reply(await whole.answer(asked))
        except Exception:
            # whoever asks must not end all processes
            logger().exception("not answered", method=asked.method, path=asked.path)

    async with asyncio.TaskGroup() as tasks:

        def begin(asked: Request, reply: Reply) -> None:
            tasks.create_task(give(asked, reply))

        async with listening(begin, http) as port:
            yield port
