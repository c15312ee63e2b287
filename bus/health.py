"""Health: what an orchestrator asks a worker over HTTP, and the pauses that an operator asks for on its machine.

GET  /livez          200 while the process works: its event loop answers
GET  /readyz         200 while every handler consumes, as the broker knows it; else 503; a state for each handler
POST /pause/NAME     let a service or a handler begin nothing until POST /resume/NAME; for this machine alone
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast
from urllib.parse import unquote

import h11

from .errors import ConfigurationError
from .middleware import breaker
from .settings import address
from .worker import MOVING, PAUSED, Worker


MOST_CONNECTIONS: Final = 64
LONGEST: Final = 10.0
"""Seconds that a connection may last."""
MOST_BYTES: Final = 16_384
"""Bytes of a request's head, and of its body."""
FROM_AFAR: Final = {b"origin", b"forwarded", b"x-forwarded-for"}
"""Headers of what a browser's page or a proxy sent: such a request comes from this machine in name only."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: a status, and a body that is text, or JSON."""

    status: int
    body: str | dict[str, Any]


@asynccontextmanager
async def served(worker: Worker, http: str, stop: asyncio.Event) -> AsyncIterator[int | None]:
    """Answer at `http` ("host:port") meanwhile; "" serves nothing. Yields the port.

    Raises ConfigurationError where it cannot listen.
    """
    if not http:
        yield None
        return
    health = Health(worker, stop)
    host, port = address(http)
    try:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(health), host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"BUS_HTTP={http!r}: cannot listen there: {reason}; choose another port") from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(health.connections):
            connection.end()
        await server.wait_closed()


@dataclass(slots=True)
class Health:
    """What is asked of one worker, and the connections on which that happens."""

    worker: Worker
    stop: asyncio.Event
    connections: set[Connection] = field(default_factory=set)

    def answer(self, method: str, path: str, *, local: bool) -> Answer:
        """Return the answer to a request; `local` means that it came from this machine."""
        match (method, path.partition("?")[0].strip("/").split("/")):
            case ("GET", ["livez"]):
                return Answer(200, "ok")
            case ("GET", ["readyz"]):
                return self.ready()
            case ("POST", ["pause" | "resume" as verb, name]):
                return self._hold(verb, unquote(name), local=local)
            case (_, ["livez" | "readyz"]):
                return Answer(405, f"{method} is not answered here: GET {path}")
            case (_, ["pause" | "resume", _]):
                return Answer(405, f"{method} is not answered here: POST {path}")
        return Answer(404, "there are GET /livez, GET /readyz, POST /pause/NAME and POST /resume/NAME")

    def ready(self) -> Answer:
        """Return whether every handler consumes, and the state of each."""
        states = {name: self._state(name) for name in self.worker.flows}
        ready = all(state["state"] != "not consuming" for state in states.values())
        status = "stopping" if self.stop.is_set() else "ready" if ready else "not ready"
        return Answer(200 if status == "ready" else 503, {"status": status, "handlers": states})

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

    def _hold(self, verb: str, name: str, *, local: bool) -> Answer:
        if not local:
            return Answer(403, f"{verb} is for requests of this machine alone, not through a proxy or a browser")
        try:
            (self.worker.pause if verb == "pause" else self.worker.resume)(name)
        except ConfigurationError as error:
            return Answer(404, str(error))
        return Answer(200, f"{verb}d {name}")


class Connection(asyncio.Protocol):
    """One connection: one request, one answer, and the end. Bounded in bytes and time."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_BYTES)
        self._request: h11.Request | None = None
        self._received = 0
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(LONGEST, self._transport.abort)
        if len(self._health.connections) >= MOST_CONNECTIONS:
            self._transport.abort()
        else:
            self._health.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        self._timer.cancel()
        self._health.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Read on, and answer once the request is there."""
        if self._answered:
            return
        self._received += len(data)
        try:
            self._http.receive_data(data)
            answer = self._read()
        except h11.RemoteProtocolError as error:
            answer = Answer(error.error_status_hint, str(error))
        if answer is None and self._received > MOST_BYTES:
            answer = Answer(413, f"a request has {MOST_BYTES:,} bytes at most")
        if answer is not None:
            self._send(answer)

    def end(self) -> None:
        """End it at once."""
        self._transport.abort()

    def _read(self) -> Answer | None:
        """Return the answer to the request; None while it is not there yet."""
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage) and (request := self._request) is not None:
                local = from_here(self._transport, request)
                return self._health.answer(request.method.decode(), request.target.decode(), local=local)
        return None

    def _send(self, answer: Answer) -> None:
        self._answered = True
        text = isinstance(answer.body, str)
        body = (f"{answer.body}\n" if text else json.dumps(answer.body, indent=2) + "\n").encode()
        headers = {
            "content-type": "text/plain; charset=utf-8" if text else "application/json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "connection": "close",
        }
        events: tuple[h11.Event, ...] = (
            h11.Response(status_code=answer.status, headers=list(headers.items())),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))
        self._transport.close()


def from_here(transport: asyncio.Transport, request: h11.Request) -> bool:
    """Tell whether a request was made on this machine, and by no page and through no proxy."""
    peername = transport.get_extra_info("peername")
    if not peername:
        return False  # it has gone already
    peer = ipaddress.ip_address(peername[0].partition("%")[0])
    peer = getattr(peer, "ipv4_mapped", None) or peer
    return peer.is_loopback and not any(name in FROM_AFAR for name, _ in request.headers)
