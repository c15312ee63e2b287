"""Hosting: one service in a worker. What it has is opened, it consumes, and all is closed; again, where that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from .draining import ENDS_WITHIN
from .errors import ConfigurationError, TidegateError
from .failure import described, first_leaf, notes
from .opening import Opened, opened
from .resources import Key
from .service import Service
from .stopping import until


FIRST: Final = 0.5
LONGEST: Final = 30.0
"""Seconds between two tries: from the first, doubled up to the longest, each shortened by chance."""
CANCELLED: Final = (
    "the task that it was opened in was cancelled from inside, by a resource, the store or a library that they call: "
    "end a wait with asyncio.timeout(), which takes its cancellation back"
)


class ResourceError(TidegateError):
    """A resource did what none may: it was cancelled from inside, tried to end the process, or did not close."""


@dataclass(slots=True)
class Life:
    """What one try to host a service came to."""

    since: float | None = None
    """When all was open, on the loop's clock."""
    over: bool = False
    """Whether it consumed for as long as it was to."""
    cut: asyncio.CancelledError | None = None
    """What ended its consuming before: it was cancelled, by a resource whose own tasks failed, say."""
    failure: BaseException | None = None
    """What it ended with."""
    raised: BaseException | None = None
    """What its consuming raised, which is no fault of what is open."""
    closing: str = ""
    """What closes, in words, or was the last to begin to."""
    closes: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once something closes."""
    stopping: bool = False
    """Whether it began to close because the worker stops."""
    late: bool = False
    """Whether it did not close in time, and was cancelled."""


class Host:
    """Hosts one service for as long as `consume` takes, and again where what it has open fails.

    It tells `failed` of each failure, in words too, and of the wait until the next try; `unclosed` of what closing
    raised in the end; and `hangs` of what does not close within what is `left` of the worker's grace.
    """

    def __init__(
        self,
        service: Service,
        provided: Mapping[Key, Any],
        random: Random,
        stop: asyncio.Event,
        *,
        consume: Callable[[Opened], Awaitable[None]],
        failed: Callable[[Exception, str, float], None],
        unclosed: Callable[[Exception], None],
        hangs: Callable[[str, float], None],
        left: Callable[[], float],
    ) -> None:
        self._service = service
        self._provided = provided
        self._random = random
        self._stop = stop
        self._consume = consume
        self._failed = failed
        self._unclosed = unclosed
        self._hangs = hangs
        self._left = left

    async def run(self) -> None:
        """Host it until the worker stops; raises what `consume` raises, and the ConfigurationError of a resource.

        What is set wrong stays wrong; all else that a resource or the store raises may heal, and is tried again.
        """
        wait = FIRST
        while True:
            life = await self._lived()
            if (failure := life.failure) is None:
                return
            if life.raised is not None or (not life.over and isinstance(first_leaf(failure), ConfigurationError)):
                raise failure
            if life.over or life.stopping:
                if not life.late:
                    self._unclosed(_contained(failure))
                return
            if life.since is not None and asyncio.get_running_loop().time() - life.since >= LONGEST:
                wait = FIRST
            delay = wait * self._random.uniform(0.5, 1)
            self._failed(*_told(life, failure), delay)
            async with until(self._stop):
                await asyncio.sleep(delay)
            if self._stop.is_set():
                return
            wait = min(2 * wait, LONGEST)

    async def _lived(self) -> Life:
        life = Life()
        try:
            async with asyncio.TaskGroup() as bounds, asyncio.TaskGroup() as tasks:
                # in a task of its own: whoever cancels the one that he was opened in ends nobody else
                task = tasks.create_task(self._live(life), name=self._service.name)
                bound = bounds.create_task(self._bound(life, task))
                task.add_done_callback(lambda _: bound.cancel())
        except asyncio.CancelledError:
            # the worker ends; what was raised as it closed is told all the same
            if life.failure is None or isinstance(life.failure, asyncio.CancelledError):
                raise
            raise _contained(life.failure) from None
        return life

    async def _live(self, life: Life) -> None:
        def closes(what: str) -> None:
            if not life.closes.is_set():
                life.stopping = self._stop.is_set()
            life.closing = what
            life.closes.set()

        try:
            async with AsyncExitStack() as stack:
                async with until(self._stop):
                    there = await stack.enter_async_context(opened(self._service, self._provided, closes))
                if not self._stop.is_set():
                    life.since = asyncio.get_running_loop().time()
                    await self._consumed(life, there)
            life.failure = life.cut or life.raised
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            # sys.exit() and the panics of extensions are failures like any other
            life.failure = error
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _consumed(self, life: Life, there: Opened) -> None:
        try:
            await self._consume(there)
            life.over = True
        except asyncio.CancelledError as error:
            life.cut = error
            raise
        except BaseException as error:
            life.raised = error
            raise

    async def _bound(self, life: Life, task: asyncio.Task[Any]) -> None:
        """Cancel what does not close in time."""
        await life.closes.wait()
        within = max(self._left(), ENDS_WITHIN)
        await asyncio.sleep(within)
        life.late = True
        self._hangs(life.closing, within)
        task.cancel()


def _told(life: Life, failure: BaseException) -> tuple[Exception, str]:
    """Return what a life failed by, and that in words."""
    if life.late:
        error: Exception = ResourceError(f"{life.closing} did not close in time, and was cancelled")
    else:
        error = _contained(failure)
    what = "cannot be opened" if life.since is None else "failed while it was in use"
    return error, "; ".join([f"a resource or the store {what}: {described(first_leaf(error))}", *notes(error)])


def _contained(failure: BaseException) -> Exception:
    """Return a failure as one that ends neither a process nor a task of anybody else."""
    if isinstance(failure, Exception):
        return failure
    leaf = first_leaf(failure)
    told = CANCELLED if isinstance(leaf, asyncio.CancelledError) else f"{described(leaf)}: none may end the process"
    error = ResourceError(told)
    for note in notes(failure):
        error.add_note(note)
    error.__cause__ = failure
    return error
