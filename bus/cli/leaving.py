"""Leaving: a worker's process ends once its work has, whatever hangs in it, and whoever reads no more what it says."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from asyncio import AbstractEventLoop as Loop
from collections.abc import Callable
from typing import Final

from .. import clock
from ..draining import ENDS_WITHIN
from ..logs import logger
from .errors import FAILED


LINGER: Final = 1.0
"""Seconds that threads have to end after everything is settled, flushed and told."""
TOLD: Final = (
    "they were started beside the handlers, and swallow CancelledError or clean up for too long: let it pass, or raise "
    "it again, and be quick"
)


def leaving(work: Callable[[asyncio.Runner], int], loop_factory: Callable[[], Loop] | None = None) -> int:
    """Do the work with a runner, and let the process end soon with the exit code that is returned, or would be.

    It ends by itself, but waits neither for a thread that hangs, as under a plain function, nor for a task that
    swallows its cancellation: what they had taken comes again. An exception is told as the interpreter would, which
    waits for threads first. Call it where nothing is left to do but to leave.
    """
    code, closed = FAILED, threading.Event()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            code = work(runner)
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            flush()
            _leave_soon(code, closed)
    closed.set()
    return code


def flush() -> None:
    """Flush what was printed; where nobody takes it, forget it: the interpreter would try again, and exit with 120."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            setattr(sys, name, None)


def _leave_soon(code: int, closed: threading.Event) -> None:
    def leave() -> None:
        until = clock.monotonic() + LINGER
        lingering = [thread for thread in threading.enumerate() if not thread.daemon]
        lingering.remove(threading.main_thread())
        for thread in lingering:
            thread.join(max(until - clock.monotonic(), 0))
        if any(thread.is_alive() for thread in lingering):
            os._exit(code)
        if not closed.wait(ENDS_WITHIN):
            logger().error("tasks do not end", told=TOLD)
            os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()
