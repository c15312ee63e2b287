"""Draining: how the tasks that run one handler end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from .logs import logger


ENDS_WITHIN: Final = 3.0
"""Seconds that a cancelled run has to end before it is told that it does not; less than a supervisor waits."""


async def drain(
    handler: str,
    working: Sequence[asyncio.Task[Any]],
    grace: float,
    stubborn: Callable[[], None],
    last: Awaitable[None] | None = None,
) -> None:
    """Let what runs finish within the grace, `last` too, then cancel it; call `stubborn` where that ends it not."""
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            if last is not None:
                await last
            await asyncio.wait(working)
    for task in working:
        task.cancel()
    _, left = await asyncio.wait(working, timeout=ENDS_WITHIN)
    if left:
        told = "it swallows CancelledError, or cleans up for too long: let it pass, or raise it again, and be quick"
        logger().error("handler does not end", handler=handler, runs=len(left), told=told)
        stubborn()
