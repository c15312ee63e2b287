"""The end of a Tester: its worker closes what it has as any worker does, for as long as nothing of it keeps running."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ..failure import first_leaf
from ..service import Service
from ..transport.memory import MemoryTransport
from ..worker import LONGEST_STOP, Worker


CLOSING: Final = 30.0
"""Seconds that a worker which was cancelled has to end; virtual ones, where nothing real is waited for."""
SWALLOWS: Final = "swallows CancelledError"


async def ended(owner: asyncio.Task[None], grace: float, *, at_once: bool) -> bool:
    """Wait for the end of a worker that was told to stop, and cancel it where it outstays its grace, or `at_once`.

    Tell whether it ended.
    """
    within = grace + 2 * LONGEST_STOP
    if not at_once:
        # as by a stop, so that what stands behind the `yield` of a resource runs too
        await asyncio.wait([owner], timeout=within)
    if not owner.done():
        owner.cancel()
        await asyncio.wait([owner], timeout=within if at_once else CLOSING)
    return owner.done()


def raised_by(owner: asyncio.Task[None]) -> BaseException | None:
    """Return what a worker raised, such as a resource of it as it closed."""
    if not owner.done() or owner.cancelled() or (error := owner.exception()) is None:
        return None
    return first_leaf(error)


def holds(transport: MemoryTransport) -> bool:
    """Tell whether a worker has deliveries that are not settled."""
    return any(consumer.unsettled for queue in transport.queues.values() for consumer in queue.consumers)


def kept_by(busy: Sequence[str]) -> str:
    """Return in words what keeps a worker that does not end, where these handlers are busy."""
    told = f"the worker did not end within {CLOSING:g} s of being cancelled"
    if not busy:
        return f"{told}: a resource does not close, or a task of it or of a handler {SWALLOWS}"
    return "\n  ".join([f"{told}: the handler {SWALLOWS}; let it pass, or raise it again", *busy])


def left_open(unclosed: Sequence[str]) -> str | None:
    """Return in words what a worker that ended did not close."""
    told = "within the grace: it was cancelled. Bound its wait, or give the test more by Tester(…, settings=…)"
    return "\n".join(f"{each} {told}" for each in unclosed) or None


def never_open(worker: Worker, services: Sequence[Service]) -> str:
    """Return in words what keeps a worker from its beginning."""
    closed = [each.name for each in services if not any(h.subscription_name in worker.consumers for h in each.handlers)]
    return (
        f"{', '.join(closed)} cannot begin: a resource or the store waits, as it opens, for what does not come, and "
        "nothing is left that could happen; give a fake of it by Tester(…, resources={…})"
    )


def left_by(tasks: Sequence[str]) -> str:
    """Return in words what is wrong with tasks that outlive their worker."""
    return (
        f"what a handler or a resource started did not end within {CLOSING:g} s of being cancelled, as it {SWALLOWS}; "
        f"let it pass, or raise it again: {', '.join(tasks)}"
    )
