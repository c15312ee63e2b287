"""Leftovers: tasks that a scenario left, and generators of crashed workers.

They are cancelled and closed, and end in virtual time, as their own clock stands.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from .ending import CLOSING
from .unsettled import NotSettled
from .virtual_time import VirtualTime


async def close_generators_left() -> None:
    """Close the generators that are left, as the end of the loop would, and give up on what does not close."""
    time, loop = VirtualTime(lambda: True), asyncio.get_running_loop()
    with time.installed(), time.jumping(), contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CLOSING):
            await loop.shutdown_asyncgens()


async def end_tasks_left() -> None:
    """Cancel the tasks that are left, and wait for their end. Raises NotSettled for what does not come to one."""
    if not _others():
        return
    time, loop = VirtualTime(lambda: True), asyncio.get_running_loop()
    with time.installed(), time.jumping():
        until, cancelled = loop.time() + CLOSING, set[asyncio.Task[Any]]()
        while (left := _others()) and (seconds := until - loop.time()) > 0:
            for task in left - cancelled:
                task.cancel()
            cancelled |= left
            await asyncio.wait(left, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not left:
            return
        for task in left:
            _close(task)
        await asyncio.gather(*left, return_exceptions=True)
    told = ", ".join(sorted(getattr(task.get_coro(), "__qualname__", "a task") for task in left))
    raise NotSettled(
        f"the scenario left what did not end within {CLOSING:g} s of being cancelled: {told}; await it in the scenario"
    )


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _close(task: asyncio.Task[Any]) -> None:
    """Let no code of it run again: what would resume its coroutine fails."""
    with contextlib.suppress(Exception):
        task.get_coro().close()
    task.cancel()
