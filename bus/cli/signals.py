"""Signals: the first one stops a program gracefully, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..forks import in_child
from ..interrupts import raises_nothing
from .errors import INTERRUPTED


def stop_on_signals(stop: asyncio.Event, log: Any, event: str, at_once: Callable[[], None] | None) -> None:
    """Set `stop` at the first signal, and log `event`; at the second do what is wanted `at_once`, and leave.

    That works with a blocked loop too. With None all signals are one: a process that has a supervisor may get its
    signal and that of whoever stops them all. A forked child ends at SIGTERM as any process does: pools end theirs so.
    """
    loop = asyncio.get_running_loop()
    signals = 0

    def begin() -> None:
        stop.set()
        log.info(event, told="what runs may finish" + ("; a second signal stops at once" if at_once else ""))

    @raises_nothing
    def signalled(_: int, __: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals == 1 and not loop.is_closed():
            loop.call_soon_threadsafe(begin)
        elif at_once is not None:
            at_once()
            os._exit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        # not the loop's own way, which would wait for the handler that blocks it
        signal.signal(number, signalled)
    in_child(signalled, _end_at_once)


def _end_at_once(signalled: object) -> None:
    if signal.getsignal(signal.SIGTERM) is signalled:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
