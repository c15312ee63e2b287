"""Deadline: the time limit of one handler's runs, with one timer for all of them.

`asyncio.timeout` costs a timer per run, a tenth of what a delivery costs in all. Runs of one handler have the same
limit, so they are overdue in the order in which they began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar


T = TypeVar("T")


class Deadline:
    """Lets runs last `limit` seconds each, then cancels their task, and raises TimeoutError in it."""

    __slots__ = ("_due", "_expired", "_limit", "_timer")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._due: dict[asyncio.Task[object], float] = {}
        self._expired: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, work: Awaitable[T], waits_for: Sequence[str] = ()) -> T:
        """Await the work; raises TimeoutError if it was cancelled because its time was over, or returned after that.

        The last of `waits_for` is named as what it waited for then.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._due[task] = loop.time() + self._limit
        if self._timer is None:
            self._timer = loop.call_later(self._limit, self._sweep, loop)
        try:
            result = await work
        except BaseException as error:
            # a cancellation that came beside ours goes on as one
            if self._was_late(task) and isinstance(error, asyncio.CancelledError) and not task.cancelling():
                raise self._too_late(waits_for) from error
            raise
        if self._was_late(task):
            raise self._too_late(waits_for)
        return result

    def _was_late(self, task: asyncio.Task[object]) -> bool:
        """Note that a run is over, and tell whether it was cancelled; that cancellation is done with then."""
        del self._due[task]
        if task not in self._expired:
            return False
        self._expired.discard(task)
        task.uncancel()
        return True

    def _too_late(self, waits_for: Sequence[str]) -> TimeoutError:
        waiting = f", waiting for {waits_for[-1]}" if waits_for else ""
        return TimeoutError(f"the handler ran past its timeout of {self._limit:g} s{waiting}")

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for task, due in list(self._due.items()):
            if due > now:
                self._timer = loop.call_at(due, self._sweep, loop)
                return
            if task not in self._expired:
                self._expired.add(task)
                task.cancel()
