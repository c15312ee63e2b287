"""`run`: the worker, until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from dataclasses import replace
from types import FrameType
from typing import Annotated, Any, Final

import typer

from .. import client, clock, logs
from .. import settings as environment
from ..app import App
from .errors import INTERRUPTED, MISTAKE


MEMORY: Final = (
    "BUS_URL is not set, so this worker runs on the memory bus: nobody else can publish to it, and everything is gone "
    "when it ends. Set BUS_URL=amqp://… for a real one."
)
LINGER: Final = 1.0
"""Seconds that threads have to end after everything is settled and flushed."""


def run(
    app: App,
    service: Annotated[list[str] | None, typer.Option(help="Host this service only; may be given again.")] = None,
) -> int:
    """Be the worker, until SIGTERM or Ctrl-C; a second signal stops at once."""
    from .. import health

    settings = environment.read()
    logs.configure(settings.log_level, settings.log_format)
    log = logs.logger()
    for line in environment.unknown():
        log.warning("unknown setting", told=line)
    hosted = app.chosen(*(service or ()))
    if not settings.url:
        log.warning("memory bus", told=MEMORY)
        settings = replace(settings, url="memory://")

    async def work() -> int:
        stop = asyncio.Event()
        _stop_on_signals(stop, log)
        names = [each.name for each in hosted]
        async with client.transport(settings) as transport:
            log.info("worker starting", services=names)
            worker = app.worker(transport, hosted, settings)
            async with health.served(worker, settings.http, stop):
                await worker.run(stop, lambda: log.info("worker started", services=names, handlers=worker.consuming))
        log.info("worker stopped")
        sys.stdout.flush()
        # every handler was refused its queue: whoever keeps workers running must see that this one failed
        code = 0 if stop.is_set() else MISTAKE
        _leave_soon(code)
        return code

    return _on_fast_loop(work())


def _stop_on_signals(stop: asyncio.Event, log: Any) -> None:
    """Set `stop` at the first signal and leave at the second, also while a handler blocks the loop."""
    loop = asyncio.get_running_loop()
    signals = 0

    def begin() -> None:
        log.info("worker stopping", told="what runs may finish; a second signal stops at once")
        stop.set()

    def signalled(_: int, __: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals > 1 or loop.is_closed():
            os._exit(INTERRUPTED)
        loop.call_soon_threadsafe(begin)

    for number in (signal.SIGTERM, signal.SIGINT):
        # not the loop's own way, which would wait for the handler that blocks it
        signal.signal(number, signalled)


def _on_fast_loop(work: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def _leave_soon(code: int) -> None:
    """Let the process end by itself, but not wait for a thread in which a plain function hangs: it was released."""

    def leave() -> None:
        until = clock.monotonic() + LINGER
        lingering = [thread for thread in threading.enumerate() if not thread.daemon]
        lingering.remove(threading.main_thread())
        for thread in lingering:
            thread.join(max(until - clock.monotonic(), 0))
        if any(thread.is_alive() for thread in lingering):
            os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()
