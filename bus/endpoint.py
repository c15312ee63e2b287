"""The endpoint: HTTP for those who ask a program how it is: one request a connection, bounded in bytes and time.

GET  /livez          200 while the process works
GET  /readyz         200 while every handler consumes, as the broker knows it; else 503; a state for each handler
GET  /metrics        numbers, as Prometheus reads them
POST /pause/NAME     let a service or a handler begin nothing until POST /resume/NAME; for this machine alone
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast
from urllib.parse import unquote

import h11

from .errors import ConfigurationError
from .forks import in_child, let_go
from .settings import address


MOST_CONNECTIONS: Final = 64
LONGEST: Final = 10.0
"""Seconds that a connection may last."""
MOST_BYTES: Final = 16_384
"""Bytes of a request's head, and of its body."""
NO_HOST: Final = "the host must be a name or an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all it has"
FROM_AFAR: Final = {b"origin", b"forwarded", b"x-forwarded-for"}
"""Headers of what a browser's page or a proxy sent: such a request comes from this machine in name only."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered: a status, and a body that is text, or JSON."""

    status: int
    body: str | dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked; `local` means that it came from this machine, and by no page and through no proxy."""

    method: str
    path: str
    local: bool


def wanted(asked: Request) -> tuple[str, str] | Answer:
    """Return what a request is for, and the name in it; or the answer of one that is for nothing."""
    match (asked.method, asked.path.partition("?")[0].strip("/").split("/")):
        case ("GET", ["livez" | "readyz" | "metrics" as what]):
            return what, ""
        case ("POST", ["pause" | "resume" as what, name]):
            if asked.local:
                return what, unquote(name)
            return Answer(403, f"{what} is for requests of this machine alone, not through a proxy or a browser")
        case (_, ["livez" | "readyz" | "metrics"]):
            return Answer(405, f"{asked.method} is not answered here: GET {asked.path}")
        case (_, ["pause" | "resume", _]):
            return Answer(405, f"{asked.method} is not answered here: POST {asked.path}")
    return Answer(404, "there are GET /livez, /readyz and /metrics, POST /pause/NAME and /resume/NAME")


Reply: TypeAlias = Callable[[Answer], None]
Answering: TypeAlias = Callable[[Request, Reply], None]
"""Answers a request by calling the reply once, at once or later."""


@asynccontextmanager
async def listening(answering: Answering, http: str) -> AsyncIterator[int | None]:
    """Answer at `http` ("host:port") meanwhile; "" serves nothing. Yields the port.

    Raises ConfigurationError where it cannot listen.
    """
    if not http:
        yield None
        return
    endpoint = Endpoint(answering)
    host, port = address(http)
    try:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(endpoint), host, port)
    except (OSError, UnicodeError) as error:  # names that are none raise the latter
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "choose another port" if here(error) else NO_HOST
        raise ConfigurationError(f"BUS_HTTP={http!r}: cannot listen there: {reason}; {remedy}") from error
    # a child that outlives this process would keep the port from the next one
    in_child(server, _let_go)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(endpoint.connections):
            connection.end()
        await server.wait_closed()


def here(error: OSError | UnicodeError) -> bool:
    """Tell whether an address that cannot be listened at is one of this machine."""
    unknown = isinstance(error, UnicodeError | socket.gaierror)
    return not unknown and getattr(error, "errno", None) not in (errno.EADDRNOTAVAIL, None)


def _let_go(server: asyncio.Server) -> None:
    for each in server.sockets:
        let_go(each.fileno())


@dataclass(slots=True)
class Endpoint:
    """Who answers, and the connections on which it was asked."""

    answering: Answering
    connections: set[Connection] = field(default_factory=set)


class Connection(asyncio.Protocol):
    """One connection: one request, one answer, and the end. Bounded in bytes and time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_BYTES)
        self._request: h11.Request | None = None
        self._received = 0
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, unless there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._timer = asyncio.get_running_loop().call_later(LONGEST, self._transport.abort)
        if len(self._endpoint.connections) >= MOST_CONNECTIONS:
            self._transport.abort()
        else:
            self._endpoint.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it."""
        self._timer.cancel()
        self._endpoint.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Read on, and answer once the request is there."""
        if self._answered:
            return
        self._received += len(data)
        try:
            self._http.receive_data(data)
            asked = self._read()
        except h11.RemoteProtocolError as error:
            self._send(Answer(error.error_status_hint, str(error)))
            return
        if asked is not None:
            self._answered = True
            self._endpoint.answering(asked, self._send)
        elif self._received > MOST_BYTES:
            self._send(Answer(413, f"a request has {MOST_BYTES:,} bytes at most"))

    def end(self) -> None:
        """End it at once."""
        self._transport.abort()

    def _read(self) -> Request | None:
        """Return the request; None while it is not there yet."""
        while (event := self._http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage) and (request := self._request) is not None:
                local = from_here(self._transport, request)
                method = "GET" if request.method == b"HEAD" else request.method.decode()
                return Request(method, request.target.decode(), local)
        return None

    def _send(self, answer: Answer) -> None:
        self._answered = True
        if self._transport.is_closing():
            return  # who asked has gone meanwhile
        text = isinstance(answer.body, str)
        body = (f"{answer.body}\n" if text else json.dumps(answer.body, indent=2) + "\n").encode()
        headers = {
            "content-type": "text/plain; charset=utf-8" if text else "application/json",
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "connection": "close",
        }
        head = self._request is not None and self._request.method == b"HEAD"
        events: tuple[h11.Event, ...] = (
            h11.Response(status_code=answer.status, headers=list(headers.items())),
            h11.Data(data=b"" if head else body),
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
