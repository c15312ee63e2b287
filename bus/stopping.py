"""Stopping: what is given up as soon as an event is set, such as that of a worker which stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def until(stop: asyncio.Event) -> AsyncIterator[None]:
    """Cancel what is done inside as soon as `stop` is set, and go on behind it; it stays in the caller's task."""

    async def watch(scope: asyncio.Timeout) -> None:
        await stop.wait()
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(None) as scope:
            watching = tasks.create_task(watch(scope))
            try:
                yield
            finally:
                watching.cancel()
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        if not (isinstance(error, TimeoutError) and scope.expired()):
            raise error from None
