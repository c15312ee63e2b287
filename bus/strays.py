"""Strays: cancellations of a worker's task that nobody asked for.

A library may end its own wait by cancelling the task that it runs in, and never take that back with `Task.uncancel()`;
a handler may do so itself. To asyncio such a task is being cancelled from then on, as if the worker stopped. So whoever
ends the tasks of a worker says so before; every other cancellation is a stray, and its task goes on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Self

from .logs import logger


CANCELLED: Final = (
    "the handler's task was cancelled from inside, by the handler or by a library that it calls: end a wait with "
    "asyncio.timeout(), which takes its cancellation back, and look for a newer version of the library"
)


class Ending:
    """Whether the tasks that are started inside are to end: once that is said, and on every way out.

    An exception in one of a task group's tasks cancels its owner first, so that counts too.
    """

    def __init__(self) -> None:
        self.begun = False
        self._owner: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._owner = asyncio.current_task()
        _ENDING.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.begun = True

    @property
    def real(self) -> bool:
        """Whether a cancellation is meant."""
        return self.begun or self._owner is None or self._owner.cancelling() > 0


_ENDING: Final[ContextVar[Ending | None]] = ContextVar("tidegate_ending", default=None)


async def taken_back(task: asyncio.Task[Any]) -> bool:
    """Take a stray cancellation of the running task back; tell whether it was one, and none that is meant."""
    ending = _ENDING.get()
    while task.cancelling():
        if ending is None or ending.real:
            return False
        while task.cancelling():
            task.uncancel()
        # what is taken back before it was thrown is thrown all the same before Python 3.13: here, and nowhere else
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
    return True


async def outlived(task: asyncio.Task[Any], handler: str) -> bool:
    """Take back, and tell, a stray that came while the handler did not run; return False where it was none."""
    if not await taken_back(task):
        return False
    logger().warning("stray cancellation", handler=handler, told=CANCELLED)
    return True
