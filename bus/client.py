"""Bus: what programs publish with; `connect()` and `connect_sync()`, which pick the transport by URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

from . import settings as environment
from .beside import Beside
from .clock import Seconds, span
from .context import until
from .errors import ConfigurationError, RequestFailed, RequestTimeout, Undecodable, UnknownVersion, Unroutable
from .event import Event, decode, type_of
from .message import Ids, Message, Outgoing, check_address, check_id, wrap
from .settings import Settings
from .transport import Transport


A = TypeVar("A", bound=Event)

CLOSED: Final = object()


class Bus:
    """Publishes events. Got from `connect()`, `App` or a `Tester`; tasks of one event loop may share it."""

    def __init__(self, transport: Transport, settings: Settings, source: str) -> None:
        self._transport = transport
        self._settings = settings
        self._source = source
        self._ids = Ids()
        self._home: object = None
        """The event loop that its connection is part of, where it has one; CLOSED is none."""

    async def publish(
        self,
        *events: Event,
        delay: Seconds = 0,
        at: datetime | None = None,
        required: bool = False,
        to: str | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Store events safely and return their ids, in order.

        When it returns, the events survive a crash of this process and, on RabbitMQ, of the broker. `delay` is in
        seconds or a timedelta, `at` a point in time with a zone instead. An event that nobody subscribes to is legal;
        `required=True` raises Unroutable for it, but on RabbitMQ not for a delayed one: who wants that is known when it
        is due; the others of the call are stored all the same. `to` names one queue to send to. `id` (for one event)
        publishes again what may have been stored already: 1 to 255 bytes without control characters. `headers` are the
        application's own.

        Waits for a connection up to `BUS_PUBLISH_TIMEOUT` (10 s). Raises PublishError with the fate of each id:
                BusUnavailable, PublishRefused or Unroutable; MessageTooLarge before anything is sent.
        """
        if self._home is not None and self._home is not asyncio._get_running_loop():
            raise self._away()
        messages = [self.message(event, id=id, headers=headers) for event in events]
        if id is not None and len(events) != 1:
            raise ConfigurationError(f"publish(id=…) takes one event, it got {len(events)}")
        if to is not None:
            check_address(to)
        wait = until(delay, at)
        try:
            await self._transport.publish([Outgoing(message, wait, required, to) for message in messages])
        except Unroutable as error:
            if to is None:
                raise
            raise Unroutable(f"there is no queue {to!r}, so nothing was sent to it", error.fates) from None
        return [message.id for message in messages]

    async def request(self, event: Event, reply: type[A], *, timeout: Seconds) -> A:
        """Publish an event and return the first event of the class `reply` that a handler publishes because of it.

        `timeout` is in seconds or a timedelta, and bounds everything: the wait for a connection, too. The event is
        published as any other, and reaches every subscription; what a handler returns is an answer.

        Raises Unroutable where nobody subscribes to it; RequestFailed at once when a handler gives up that could have
        answered, or when the answer cannot be read; RequestTimeout when no answer comes; BusUnavailable where it was
        not stored in time, or when the connection is lost while it waits. Only Unroutable and PublishRefused say that
        no handler runs. MessageTooLarge comes before anything is sent.
        """
        if self._home is not None and self._home is not asyncio._get_running_loop():
            raise self._away()
        try:
            within = span(timeout).total_seconds()
        except (OverflowError, TypeError, ValueError):
            raise ConfigurationError(
                f"request: timeout={timeout!r}; it is seconds as a number, or a timedelta"
            ) from None
        if within <= 0:
            raise ConfigurationError(f"request: a timeout of {timeout} leaves no time for an answer")
        if not (isinstance(reply, type) and issubclass(reply, Event)):
            raise ConfigurationError(f"request: reply={reply!r}; it is the class of the event that is waited for")
        wants = type_of(reply)
        message = replace(self.message(event), wants=wants)
        try:
            answer = await self._transport.request(message, timeout=within)
        except TimeoutError:
            raise RequestTimeout(message.id, message.type, wants, within) from None
        try:
            return decode(reply, answer.body, answer.version)
        except Undecodable as error:
            reason = "unknown-version" if isinstance(error, UnknownVersion) else "undecodable"
            raise RequestFailed(answer.source or "a plain client", reason, type(error).__name__, str(error)) from error

    @property
    def dropped_replies(self) -> int:
        """How many replies came for which nobody waited: too late, not the first, or a stranger's."""
        return self._transport.replies.dropped

    def _away(self) -> ConfigurationError:
        if self._home is CLOSED:
            return ConfigurationError(
                "this bus is closed, and nothing was sent: publish inside of its `async with connect() as bus`, and "
                "keep that open for as long as the program publishes"
            )
        return ConfigurationError(
            "this bus was connected in another event loop, and nothing was sent: connect() once in each loop, or use "
            "connect_sync(), which has a loop of its own"
        )

    def message(self, event: Event, *, id: str | None = None, headers: Mapping[str, str] | None = None) -> Message:
        """Return the event as the message that `publish` would send; raises MessageTooLarge."""
        limit = self._settings.max_message_bytes
        return wrap(
            event, id=self._ids() if id is None else check_id(id), source=self._source, limit=limit, headers=headers
        )


class SyncBus:
    """The same for code that is not async. Threads may share it; a forked child needs its own."""

    def __init__(self, bus: Bus, beside: Beside[Bus]) -> None:
        self._bus = bus
        self._beside = beside

    def publish(
        self,
        *events: Event,
        delay: Seconds = 0,
        at: datetime | None = None,
        required: bool = False,
        to: str | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Store events safely and return their ids; as `Bus.publish`, and blocking."""
        self._check()

        async def publish() -> list[str]:
            return await self._bus.publish(
                *events, delay=delay, at=at, required=required, to=to, id=id, headers=headers
            )

        return self._beside.call(publish)

    def request(self, event: Event, reply: type[A], *, timeout: Seconds) -> A:
        """Publish an event and return the first event of the class `reply` that it causes; as `Bus.request`."""
        self._check()

        async def request() -> A:
            return await self._bus.request(event, reply, timeout=timeout)

        return self._beside.call(request)

    def _check(self) -> None:
        if self._beside.closed:
            raise ConfigurationError(
                "this bus is closed, and nothing was sent: publish inside of its `with connect_sync() as bus`"
            )
        if self._beside.inherited:
            raise ConfigurationError("this bus was connected before a fork; call connect_sync() in the child process")


@asynccontextmanager
async def connect(
    url: str | None = None, *, source: str = "/client", settings: Settings | None = None
) -> AsyncIterator[Bus]:
    """Connect to the bus of `url`, or of `BUS_URL`: `async with connect() as bus: await bus.publish(…)`.

    Returns at once; publishing waits for the connection. What it returns is no bus, but has one for its `async with`:
    that belongs to the event loop in which it was connected, and is closed at the end. `source` names the publisher in
    each event (CloudEvents' `source`). Raises ConfigurationError where there is no URL, or one of no bus: never a
    silent memory bus.
    """
    chosen, url = _chosen(url, settings), None
    if not chosen.url:
        raise ConfigurationError(
            "connect(): there is no bus to connect to. Set BUS_URL, such as amqp://guest:guest@localhost/, or pass one."
        )
    async with transport(chosen) as opened:
        bus = Bus(opened, chosen, source)
        bus._home = asyncio.get_running_loop()
        try:
            yield bus
        finally:
            bus._home = CLOSED


@contextmanager
def connect_sync(
    url: str | None = None, *, source: str = "/client", settings: Settings | None = None
) -> Iterator[SyncBus]:
    """Connect from code that is not async: `with connect_sync() as bus: bus.publish(…)`. Thread-safe.

    What is open when the program ends is closed then; a forked child leaves it to its parent, and connects itself.
    """
    chosen, url = _chosen(url, settings), None
    beside = Beside(connect(source=source, settings=chosen))
    bus, left = beside.open(), False
    try:
        yield SyncBus(bus, beside)
        left = True
    finally:
        beside.close(cancel=not left)


def _chosen(url: str | None, settings: Settings | None) -> Settings:
    """Return the settings with this URL; no frame keeps it, for tracebacks that show locals would show its password."""
    if settings is None:
        environment.warn_of_unknown()
    chosen = settings or environment.read()
    return chosen if url is None else replace(chosen, url=url)


def transport(settings: Settings) -> AbstractAsyncContextManager[Transport]:
    """Return the transport of the settings' URL; the only place that picks one."""
    scheme = settings.scheme
    if scheme == "memory":
        from .transport.memory import MemoryTransport

        return _closing(MemoryTransport())
    if scheme in ("amqp", "amqps"):
        from .transport.rabbitmq import RabbitMQTransport

        return RabbitMQTransport.open(settings)
    wrong = f"{scheme!r} is no transport" if scheme else "there is no amqp:// in front of it"
    raise ConfigurationError(
        f"BUS_URL: {wrong}; a URL is amqp://user:password@host/vhost, amqps://…, or memory:// for tests"
    )


@asynccontextmanager
async def _closing(opened: Transport) -> AsyncIterator[Transport]:
    try:
        yield opened
    finally:
        await opened.aclose()
