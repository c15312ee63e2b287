"""The life of one delivery: decode, call, judge, settle.

`build` folds the steps and the middleware of one handler once, when its worker starts:

    logging( settling( middleware( run( decode → call → judge ) ) ) )
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread

from . import clock
from .context import Context
from .errors import DeliveryLost, MessageTooLarge, TidegateError, Undecodable, Unroutable
from .event import Event, Events, decode_known
from .failure import dead, judge, unreadable
from .message import Message
from .outcome import Ack, Outcome, Release
from .resources import Resources
from .service import Handler, Middleware, Process
from .settings import Settings
from .transport import Delivery


class Slots(Protocol):
    """The right to run: one of the service's, and one of the handler's where it has its own limit."""

    async def take(self) -> None: ...
    def give(self) -> None: ...


class HandlerError(TidegateError):
    """A handler did what no handler may: it returned something else than events, or cancelled itself."""


@dataclass(slots=True)
class Runtime:
    """What the deliveries of one service share in one worker."""

    settings: Settings
    events: Events
    resources: Resources
    source: str
    threads: anyio.CapacityLimiter
    random: Random = field(default_factory=Random)


def build(handler: Handler, runtime: Runtime, slots: Slots, middleware: Sequence[Middleware], log: Middleware) -> Process:
    """Return how one delivery of the handler is processed and settled; whoever calls it has taken a slot."""
    process = running(handler, runtime)
    for wrap in reversed(middleware):
        process = wrap(handler, process)
    return log(handler, settling(handler, process, slots, runtime.random))


def running(handler: Handler, runtime: Runtime) -> Process:
    """Return the innermost step: from a delivery to its outcome, with nothing carried out yet."""
    known = handler.known(runtime.events)
    call = calling(handler, runtime)
    name, source = handler.subscription_name, runtime.source
    settings, random = runtime.settings, runtime.random

    async def run(delivery: Delivery) -> Outcome:
        message = delivery.message
        if hopeless := _hopeless(handler, delivery, settings):
            return hopeless
        try:
            given = decode_known(known, message.type, message.body, message.version) if known else message
        except Undecodable as error:
            return unreadable(handler, delivery, error, settings.deploy_grace)
        context = Context(
            message,
            subscription=name,
            source=source,
            limit=settings.max_message_bytes,
            attempt=delivery.attempt,
            first_failed_at=delivery.first_failed_at,
        )
        try:
            context.publish(*_events(await call(given, context)))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises is its failure
            return judge(handler, delivery, error, random)
        return Ack(context.outgoing)

    return run


def calling(handler: Handler, runtime: Runtime) -> Any:
    """Return how the handler is called: with its parameters, under its timeout, a plain function in a thread."""
    function, timeout = handler.function, handler.timeout
    invoke = _awaited if inspect.iscoroutinefunction(inspect.unwrap(function)) else _threaded(runtime.threads)
    plain = {name: key for name, key in handler.needs.items() if key in (Context, Message)}
    needs = {name: key for name, key in handler.needs.items() if name not in plain}

    async def call(given: Event | Message, context: Context) -> Any:
        values = {name: context if key is Context else context.message for name, key in plain.items()}
        if not needs:
            return await invoke(function, given, values, timeout)
        async with AsyncExitStack() as stack:
            values |= await runtime.resources.values(needs, stack)
            return await invoke(function, given, values, timeout)

    return call


async def _awaited(function: Any, given: Event | Message, values: dict[str, Any], timeout: float) -> Any:
    try:
        async with asyncio.timeout(timeout) as deadline:
            return await function(given, **values)
    except TimeoutError as error:
        if deadline.expired():
            raise TimeoutError(f"the handler ran past its timeout of {timeout:g} s") from error
        raise
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise HandlerError("the handler ended in CancelledError, though nobody cancelled it") from error


def _threaded(threads: anyio.CapacityLimiter) -> Any:
    async def call(function: Any, given: Event | Message, values: dict[str, Any], timeout: float) -> Any:
        # a thread cannot be cancelled: its failure is settled when it returns, never beside a running twin
        started = clock.monotonic()
        returned = await anyio.to_thread.run_sync(
            lambda: function(given, **values), abandon_on_cancel=True, limiter=threads
        )
        if clock.monotonic() - started > timeout:
            raise TimeoutError(f"the handler returned after its timeout of {timeout:g} s")
        return returned

    return call


def settling(handler: Handler, process: Process, slots: Slots, random: Random) -> Process:
    """Return the step that carries the outcome out; the slot is free again before, as the broker may take its time.

    A run whose outcome could not be settled, because the connection was lost, is not repeated in this worker when its
    message comes again: the outcome that it came to is settled then.
    """
    runs = Runs()

    async def settle(delivery: Delivery) -> Outcome:
        try:
            outcome = await runs.outcome(process, delivery)
        except Exception as error:  # noqa: BLE001 - a middleware's own failure is the delivery's
            outcome = judge(handler, delivery, error, random)
        finally:
            slots.give()
        try:
            try:
                await delivery.settle(outcome)
            except Unroutable as error:
                outcome = judge(handler, delivery, error, random)
                await delivery.settle(outcome)
        except DeliveryLost:
            return Release()
        runs.settled(delivery)
        return outcome

    return settle


class Runs:
    """The runs of one handler that are not settled yet, so that a message that comes again finds its earlier run."""

    MOST: Final = 1_000
    """Outcomes that are kept for messages that may come again; the oldest go first."""

    def __init__(self) -> None:
        self._by_message: dict[tuple[str, int], asyncio.Future[Outcome]] = {}

    async def outcome(self, process: Process, delivery: Delivery) -> Outcome:
        """Run the delivery, or take the outcome of its earlier run in this worker, waiting for its end."""
        key = (delivery.message.id, delivery.attempt)
        if delivery.message.id_made_up:
            return await process(delivery)
        if key in self._by_message:
            earlier = self._by_message[key]
            if not delivery.redelivered:
                return await process(delivery)
            await asyncio.wait([earlier])
            if not earlier.cancelled():
                return earlier.result()
        return await self._run(process, delivery, key)

    async def _run(self, process: Process, delivery: Delivery, key: tuple[str, int]) -> Outcome:
        future = self._by_message[key] = asyncio.get_running_loop().create_future()
        try:
            outcome = await process(delivery)
        except BaseException:
            future.cancel()
            self._by_message.pop(key, None)
            raise
        future.set_result(outcome)
        if len(self._by_message) > self.MOST:
            self._forget_oldest()
        return outcome

    def settled(self, delivery: Delivery) -> None:
        """Forget a run: its message will not come again."""
        self._by_message.pop((delivery.message.id, delivery.attempt), None)

    def _forget_oldest(self) -> None:
        done = (key for key, future in self._by_message.items() if future.done())
        if (oldest := next(done, None)) is not None:
            del self._by_message[oldest]


def _hopeless(handler: Handler, delivery: Delivery, settings: Settings) -> Outcome | None:
    message = delivery.message
    if len(message.body) > settings.max_message_bytes:
        error: Exception = MessageTooLarge(message.type, len(message.body), settings.max_message_bytes)
        return dead(handler, delivery, "too-large", error, runs=0)
    if message.expires is not None and message.expires <= clock.now():
        error = TimeoutError(f"the message expired at {message.expires.isoformat()}")
        return dead(handler, delivery, "expired", error, runs=0)
    if message.hops > settings.max_hops:
        error = HandlerError(f"{message.hops} handlers in a row caused each other's events; the limit is BUS_MAX_HOPS")
        return dead(handler, delivery, "hops", error, runs=0)
    return None


def _events(returned: Any) -> Sequence[Event]:
    if returned is None:
        return ()
    if isinstance(returned, Event):
        return (returned,)
    events = tuple(returned) if isinstance(returned, list | tuple | set | frozenset) else None
    if events is None or not all(isinstance(event, Event) for event in events):
        raise HandlerError(f"the handler returned {type(returned).__qualname__}: it may return events, or None")
    return events


