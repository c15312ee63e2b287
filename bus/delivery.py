"""The life of one delivery: decode, call, judge, settle.

`build` folds the steps and the middleware of one handler once, when its worker starts:

    logging( settling( middleware( run( decode → call → judge ) ) ) )

Of an idempotent handler, `idempotency.py` stands around `settling` and around `run`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

import anyio

from . import clock
from .answers import answered, told
from .calling import HandlerError, calling
from .context import Context
from .deploys import stale, unreadable
from .errors import DeliveryLost, MessageTooLarge, Undecodable, Unroutable
from .event import Event, Events, decode_known
from .failure import dead, judge
from .idempotency import NotCompleted, left, once, units
from .interrupts import may_be_ctrl_c
from .message import STRUCTURED, Message
from .outcome import Ack, DeadLetter, Outcome, Release, Retry
from .resources import Key, Resources
from .runs import Run, Runs, run_of
from .service import Handler, Middleware, Process
from .settings import Settings
from .store import OpenStore
from .strays import CANCELLED, taken_back
from .transport import Delivery


MOST_HEADERS: Final = 48_000
"""Bytes of headers and properties that a message may come with: a copy of it must have room for a failure record."""


class Slots(Protocol):
    """What a run has of its service and, where that has a limit of its own, of its handler."""

    def give(self) -> None:
        """Give it back."""
        ...


@dataclass(slots=True)
class Runtime:
    """What the deliveries of one service share in one worker."""

    settings: Settings
    events: Events
    resources: Resources
    source: str
    threads: anyio.CapacityLimiter
    random: Random = field(default_factory=Random)
    store: OpenStore | None = None
    transaction_type: Key = None


def build(
    handler: Handler, runtime: Runtime, slots: Slots, runs: Runs, middleware: Sequence[Middleware], log: Middleware
) -> Process:
    """Return how one delivery of the handler is processed and settled; whoever calls it has taken a slot."""
    process, store = running(handler, runtime), runtime.store if handler.idempotent else None
    if store is not None:
        process = once(handler, store, process)
    for wrap in reversed(middleware):
        process = wrap(handler, process)
    process = settling(handler, process, slots, runs, runtime)
    return log(handler, process if store is None else units(handler, store, process))


def running(handler: Handler, runtime: Runtime) -> Process:
    """Return the innermost step: from a delivery to its outcome, with nothing carried out yet."""
    known = handler.known(runtime.events)
    call = calling(handler, runtime.resources, runtime.threads, runtime.transaction_type)
    name, source = handler.subscription_name, runtime.source
    settings, random = runtime.settings, runtime.random
    unasked = stale(handler, handler.subscription(runtime.events).patterns, settings.deploy_grace)

    async def run(delivery: Delivery) -> Outcome:
        message = delivery.message
        if (given_up := _hopeless(handler, delivery, settings) or unasked(delivery)) is not None:
            return given_up
        try:
            if message.problems and handler.events:
                _refuse_unopened(message)
            given = decode_known(known, message.type, message.body, message.version) if handler.events else message
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
            returned = context.publish(*_events(await call(given, context, delivery)))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            cancelled = HandlerError("the handler ended in CancelledError, though nobody cancelled it")
            cancelled.__cause__ = error
            return judge(handler, delivery, cancelled, random)
        except BaseException as error:
            if may_be_ctrl_c(error):
                raise
            # sys.exit() and the panics of extensions are failures like any other; where this coroutine is closed, its
            # GeneratorExit comes to each caller too, whatever is returned to them
            return judge(handler, delivery, error, random)
        if message.reply_to is None:
            return Ack(context.outgoing)
        return answered(message, context.outgoing, len(returned))

    return run


def _refuse_unopened(message: Message) -> None:
    # around an event that could not be taken out, fields may fit all the same
    if message.content_type.lower().startswith(STRUCTURED):
        raise Undecodable("the body is in structured mode, and its event cannot be read")


def settling(handler: Handler, process: Process, slots: Slots, runs: Runs, runtime: Runtime) -> Process:
    """Return the step that carries the outcome out; the slot is free again before, as the broker may take its time.

    A run whose outcome could not be settled, because the connection was lost, is not repeated in this worker when its
    message comes again: the outcome that it came to is settled then.
    """
    random = runtime.random
    alone = suspected(handler, process, runtime.settings.crash_limit)

    async def settle(delivery: Delivery) -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        key = run_of(delivery)
        begun: Run | None = None
        try:
            outcome = await runs.earlier(key) if key is not None and delivery.redelivered else None
            if outcome is None:
                begun = runs.begin(key)
                outcome = await _checked(await (alone if delivery.suspect else process)(delivery), task)
        except DeliveryLost:
            runs.end(begun, None)
            return Release()
        except (Exception, asyncio.CancelledError) as error:
            if (failed := await _failure(error, task)) is None:
                # a stop is neither success nor failure, whatever handler and middleware made of it
                runs.end(begun, None)
                raise asyncio.CancelledError from error
            outcome = judge(handler, delivery, failed, random)
        except BaseException:
            runs.end(begun, None)
            raise
        finally:
            slots.give()
        return await _carry_out(handler, delivery, outcome, runtime, task, runs, key)

    return settle


def suspected(handler: Handler, process: Process, crash_limit: int) -> Process:
    """Return how a suspect is processed: noted before and after, so that a run which killed its worker is known of.

    One that began `crash_limit` times and never ended is not run again.
    """

    async def run(delivery: Delivery) -> Outcome:
        begun = await delivery.begin()
        try:
            if begun >= crash_limit:
                error = HandlerError(f"{begun} runs of it began and never ended: it kills its worker")
                return dead(handler, delivery, "crash", error, runs=begun)
            return await process(delivery)
        finally:
            await delivery.end()

    return run


async def _checked(outcome: Outcome, task: asyncio.Task[Any]) -> Outcome:
    if task.cancelling():
        if not await taken_back(task):
            raise asyncio.CancelledError
        # a failure of its own says more, but a success that was cut short may be none
        if isinstance(outcome, Ack):
            raise HandlerError(CANCELLED)
    if not isinstance(outcome, Ack | Retry | DeadLetter | Release):
        raise HandlerError(f"a middleware returned {type(outcome).__qualname__}: it returns an outcome")
    return outcome


async def _failure(error: BaseException, task: asyncio.Task[Any]) -> BaseException | None:
    """Return what a run failed by; None if it was stopped."""
    if not task.cancelling():
        return error
    if not await taken_back(task):
        return None
    if not isinstance(error, asyncio.CancelledError):
        return error
    cancelled = HandlerError(CANCELLED)
    cancelled.__cause__ = error
    return cancelled


async def _carry_out(
    handler: Handler,
    delivery: Delivery,
    outcome: Outcome,
    runtime: Runtime,
    task: asyncio.Task[Any],
    runs: Runs,
    key: Run | None,
) -> Outcome:
    """Carry an outcome out, or what its own failure is judged as; what is lost over it is kept as what the run came to.

    A success is not where it was to be committed and was not: it runs again. A failure was to commit nothing.
    """
    lost: Outcome | None = outcome
    held = 0.0
    try:
        try:
            await delivery.settle(told(handler, delivery.message, outcome, runtime.source))
        except (Unroutable, MessageTooLarge, NotCompleted, asyncio.CancelledError) as error:
            failed: BaseException | None = error
            if isinstance(error, asyncio.CancelledError) and (failed := await _failure(error, task)) is None:
                raise
            assert failed is not None
            lost = outcome = judge(handler, delivery, failed, runtime.random)
            await delivery.settle(told(handler, delivery.message, outcome, runtime.source))
        lost = None
    except DeliveryLost as error:
        held = error.held
        return Release()
    finally:
        runs.end(key, left(delivery, lost), held)
    return outcome


def _hopeless(handler: Handler, delivery: Delivery, settings: Settings) -> Outcome | None:
    message = delivery.message
    if len(message.body) > settings.max_message_bytes:
        error: Exception = MessageTooLarge(message.type, len(message.body), settings.max_message_bytes)
        return dead(handler, delivery, "too-large", error, runs=0)
    if message.header_bytes > MOST_HEADERS:
        error = MessageTooLarge(message.type, message.header_bytes, MOST_HEADERS, "headers")
        return dead(handler, delivery, "too-large", error, runs=0)
    if message.expires is not None and message.expires <= clock.now():
        error = TimeoutError(f"the message expired at {message.expires.isoformat()}")
        return dead(handler, delivery, "expired", error, runs=0)
    if message.hops > settings.max_hops:
        error = HandlerError(
            f"{message.hops} handlers in a row caused each other's events, and BUS_MAX_HOPS is {settings.max_hops}: "
            "break the circle, or raise the limit; a replay counts on"
        )
        return dead(handler, delivery, "hops", error, runs=0)
    return None


def _events(returned: Any) -> Sequence[Event]:
    if returned is None:
        return ()
    if isinstance(returned, Event):
        return (returned,)
    # no set: its order differs from run to run, and with it the ids
    events = tuple(returned) if isinstance(returned, list | tuple) else None
    if events is None or not all(isinstance(event, Event) for event in events):
        raise HandlerError(f"the handler returned {type(returned).__qualname__}: it may return events, or None")
    return events
