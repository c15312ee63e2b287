"""Leaving: a worker's process ends once its work has, whatever hangs in a thread of it, and whoever reads no more."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from .. import clock
from .errors import FAILED


LINGER: Final = 1.0
"""Seconds that threads have to end after everything is settled, flushed and told."""


def leaving(work: Callable[[], int]) -> int:
    """Do the work, and let the process end by itself with the exit code that is returned, or was, within a second.

    No thread is waited for in which a plain function hangs, or whatever else a user started: what was taken comes
    again. An exception is told as the interpreter would, which waits for threads first. Call it where the process is to
    end, inside of what waits for threads itself.
    """
    code = FAILED
    try:
        code = work()
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        flush()
        _leave_soon(code)
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


def _leave_soon(code: int) -> None:
    def leave() -> None:
        until = clock.monotonic() + LINGER
        lingering = [thread for thread in threading.enumerate() if not thread.daemon]
        lingering.remove(threading.main_thread())
        for thread in lingering:
            thread.join(max(until - clock.monotonic(), 0))
        if any(thread.is_alive() for thread in lingering):
            os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()
