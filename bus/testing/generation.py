"""A generation of a worker: tasks that can be abandoned, as if their process had died.

An abandoned task never runs again: no `finally`, no `except CancelledError`. Each task that is created inside a
generation drives its coroutine through a trampoline that stops resuming it.
"""

from __future__ import annotations

import asyncio
import inspect
import types
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Final


NESTED: Final = 100
"""Most `finally` blocks, one in another, that await as their coroutine is closed: each close gets past one."""
_CURRENT: Final[ContextVar[Generation | None]] = ContextVar("tidegate generation", default=None)


class Generation:
    """The tasks of one life of a worker: whatever is created while `_CURRENT` is this one.

    `at_step` is called before each step of each of them, and may return what the step has to wait for.
    """

    def __init__(self, at_step: Callable[[], asyncio.Future[None] | None] = lambda: None) -> None:
        self._at_step = at_step
        self.abandoned = False
        """Whether none of the tasks runs again."""
        self._driven: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the owner of this generation; the tasks that it creates, and theirs, belong to it."""
        token = _CURRENT.set(self)
        try:
            return asyncio.get_running_loop().create_task(work)
        finally:
            _CURRENT.reset(token)

    def abandon(self) -> None:
        """Let none of the tasks run again."""
        self.abandoned = True

    async def dispose(self, within: float) -> list[str]:
        """Cancel the tasks that are left, and abandon those that do not end within so many seconds: return their names.

        What was abandoned runs no code as it ends; only then are its coroutines closed.
        """
        stuck = await _cancelled([task for task in self._driven if not task.done()], within)
        names = [_named(self._driven[task]) for task in stuck]
        if stuck:
            self.abandon()
            await _cancelled(stuck, within)
        with _never_awaited():
            for task in [*self._driven]:
                _close(self._driven.pop(task))
        return names

    def task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, arguments: Any) -> asyncio.Task[Any]:
        """Return a task that drives the coroutine for as long as this generation lives."""
        task = asyncio.Task(self._drive(coroutine), loop=loop, **arguments)
        self._driven[task] = coroutine
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not self.abandoned:
            # one that was cancelled before its first step was to await what nobody awaits now
            begun = _state(self._driven[task]) == inspect.CORO_CLOSED
            with nullcontext() if begun else _never_awaited():
                _close(self._driven.pop(task))

    async def _drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self._resumed(coroutine)

    @types.coroutine
    def _resumed(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            wait = self._at_step()
            while self.abandoned or wait is not None:
                try:
                    yield from wait or asyncio.get_running_loop().create_future()
                except asyncio.CancelledError as cancelled:
                    if self.abandoned or _state(coroutine) == inspect.CORO_CREATED:
                        raise
                    value, resume = cancelled, coroutine.throw
                wait = None
            try:
                awaited = resume(value)
            except StopIteration as stop:
                return stop.value
            try:
                value, resume = (yield awaited), coroutine.send
            except BaseException as error:
                if self.abandoned:
                    raise
                value, resume = error, coroutine.throw


def _close(coroutine: Any) -> None:
    """Close a coroutine, after what it awaits; what awaits as it is closed is closed again."""
    if _state(coroutine) == inspect.CORO_CREATED:
        with suppress(GeneratorExit):
            coroutine.throw(GeneratorExit)  # since Python 3.13 close() keeps what it was given
        return
    refused = 0
    while refused < NESTED:
        inner = coroutine
        while _state(awaited := getattr(inner, "cr_await", None)) == inspect.CORO_SUSPENDED:
            inner = awaited
        try:
            inner.close()
        except (Exception, BaseExceptionGroup):
            refused += 1
        else:
            if inner is coroutine:
                return


@contextmanager
def _never_awaited() -> Iterator[None]:
    """Let nobody be warned of what tasks that had not begun were to await: that is no slip of theirs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        yield


def _state(thing: Any) -> str | None:
    return inspect.getcoroutinestate(thing) if inspect.iscoroutine(thing) else None


async def _cancelled(tasks: Sequence[asyncio.Task[Any]], within: float) -> list[asyncio.Task[Any]]:
    """Cancel tasks; return those that have not ended then."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=within)
    return [task for task in tasks if not task.done()]


def _named(coroutine: Coroutine[Any, Any, Any]) -> str:
    code = getattr(coroutine, "cr_code", None)
    name = getattr(coroutine, "__qualname__", repr(coroutine))
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def in_a_worker() -> bool:
    """Tell whether the running task is of a worker that can be abandoned."""
    return _CURRENT.get() is not None


@contextmanager
def generations() -> Iterator[None]:
    """Let tasks that are created inside a generation belong to it."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **arguments: Any) -> Any:
        if (generation := _CURRENT.get()) is not None:
            return generation.task(loop, coroutine, arguments)
        if before is not None:
            return before(loop, coroutine, **arguments)
        return asyncio.Task(coroutine, loop=loop, **arguments)

    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(before)
