"""How a handler is called: with its parameters, under its timeout, a plain function in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_thread

from . import clock
from .context import Context
from .deadline import Deadline
from .errors import TidegateError
from .event import Event
from .failure import type_name
from .idempotency import unit_of
from .logs import logger
from .message import Message
from .resources import Key, Resources
from .service import Handler, awaited
from .transport import Delivery


Call: TypeAlias = Callable[[Event | Message, Context, Delivery], Awaitable[Any]]
"""Calls the handler's function with what it subscribed to, and returns what it returned."""

CLOSING: Final = "its resources to close"


class HandlerError(TidegateError):
    """A handler did what no handler may: it returned something else than events, or cancelled itself."""


def calling(handler: Handler, resources: Resources, threads: anyio.CapacityLimiter, transaction_type: Key) -> Call:
    """Return how the handler is called.

    Its timeout bounds an async function together with the resources that are opened for it. A plain function cannot be
    cut off: what is opened before it has the timeout for itself. What closes after a timeout has as long again.
    """
    plain = {name: key for name, key in handler.needs.items() if key in (Context, Message)}
    own = {name for name, key in handler.needs.items() if handler.idempotent and key is transaction_type}
    lasting = resources.lasting(handler.needs)
    needs = {name: key for name, key in handler.needs.items() if name not in {*plain, *own, *lasting}}
    timeout, cut_off = handler.timeout, awaited(handler.function)
    function = handler.function if cut_off else _threaded(handler, threads)
    deadline = Deadline(timeout) if cut_off else None
    opened = _opened(function, needs, resources, None if cut_off else Deadline(timeout), Deadline(timeout))

    async def call(given: Event | Message, context: Context, delivery: Delivery) -> Any:
        values = dict(lasting)
        for name, key in plain.items():
            values[name] = context if key is Context else context.message
        if own:
            values |= dict.fromkeys(own, unit_of(delivery).completion.transaction)
        waits_for: list[str] = []
        work = opened(given, values, waits_for) if needs else function(given, **values)
        return await (work if deadline is None else deadline.run(work, waits_for))

    return call


def _opened(
    function: Any, needs: Mapping[str, Key], resources: Resources, opening: Deadline | None, closing: Deadline
) -> Callable[[Event | Message, dict[str, Any], list[str]], Awaitable[Any]]:
    async def call(given: Event | Message, values: dict[str, Any], waits_for: list[str]) -> Any:
        stack = AsyncExitStack()
        try:
            work = resources.values(needs, stack, waits_for)
            there = await (work if opening is None else opening.run(work, waits_for))
            returned = await function(given, **values, **there)
        except BaseException as error:
            await closing.run(stack.__aexit__(type(error), error, error.__traceback__), [*waits_for, CLOSING])
            # a resource that kept the exception for itself makes no success of it
            raise
        waits_for.append(CLOSING)
        await closing.run(stack.__aexit__(None, None, None), waits_for)
        return returned

    return call


def _threaded(handler: Handler, threads: anyio.CapacityLimiter) -> Any:
    function, timeout = handler.function, handler.timeout

    async def threaded(given: Event | Message, **values: Any) -> Any:
        # a thread cannot be cancelled: its failure is settled when it returns, never beside a running twin
        started, begun = clock.monotonic(), False

        def run() -> Any:
            nonlocal begun
            begun = True
            try:
                return function(given, **values)
            except (KeyboardInterrupt, GeneratorExit) as error:
                # Ctrl-C comes to no thread but the main one; and what awaits a GeneratorExit would be closed by it
                raise HandlerError(f"the handler raised {type_name(error)}") from error

        try:
            returned = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=threads)
        except asyncio.CancelledError:
            # otherwise it is the function's own, as of a loop that it had
            if begun and (task := asyncio.current_task()) and task.cancelling():
                told = "a plain function cannot be cut off: it is left where it is, and its message comes again"
                logger().warning("handler left running", handler=handler.subscription_name, told=told)
            raise
        if clock.monotonic() - started > timeout:
            raise TimeoutError(f"the handler returned after its timeout of {timeout:g} s")
        return returned

    return threaded
