"""An event loop beside code that is not async: in a thread of its own, until it is closed or the program ends."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar


if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal


C = TypeVar("C")
R = TypeVar("R")


class Beside(Generic[C]):
    """Opens an asynchronous context in a thread with an event loop, where any thread may call into it."""

    def __init__(self, context: AbstractAsyncContextManager[C]) -> None:
        self.closed = False
        self._context = context
        self._pid = os.getpid()
        self._opened: Future[tuple[C, BlockingPortal, asyncio.Future[bool]]] = Future()
        self._ended: Future[None] = Future()

    def open(self) -> C:
        """Return what the context gives; raises what it raises."""
        threading.Thread(target=self._run, name="tidegate bus", daemon=True).start()
        opened, self._portal, self._leaving = self._opened.result()
        # what is still open later would wait for a thread that runs no more
        atexit.register(self.close, cancel=True)
        return opened

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one that opened it: the thread is the parent's."""
        return self._pid != os.getpid()

    def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Do the work in the event loop, and wait for it."""
        return self._portal.call(work)

    def close(self, *, cancel: bool = False) -> None:
        """Leave the context, and end the thread once calls of others have ended, or are cancelled.

        A forked child leaves all that to its parent.
        """
        if self.closed or self.inherited:
            return
        self.closed = True
        atexit.unregister(self.close)
        with suppress(RuntimeError):  # where the loop ended already
            self._portal.call(self._leaving.set_result, cancel)
        self._ended.result()

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except BaseException as error:
            failed: Future[Any] = self._ended if self._opened.done() else self._opened
            failed.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _keep(self) -> None:
        from anyio.from_thread import BlockingPortal

        leaving = asyncio.get_running_loop().create_future()
        async with self._context as opened, BlockingPortal() as portal:
            self._opened.set_result((opened, portal, leaving))
            await portal.stop(await leaving)
