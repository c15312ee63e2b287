"""`run`: the worker, until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from .. import logs
from .. import settings as environment
from ..app import App


MEMORY = (
    "BUS_URL is not set, so this worker runs on the memory bus: nobody else can publish to it, and everything is gone "
    "when it ends. Set BUS_URL=amqp://… for a real one."
)


def run(
    app: App,
    service: Annotated[list[str] | None, typer.Option(help="Host this service only; may be given again.")] = None,
) -> None:
    """Be the worker, until SIGTERM or Ctrl-C; a second signal stops at once."""
    settings = environment.read()
    logs.configure(settings.log_level, settings.log_format)
    log = logs.logger()
    for line in environment.unknown():
        log.warning("unknown setting", told=line)
    hosted = app.chosen(*(service or ()))
    if not settings.url:
        log.warning("memory bus", told=MEMORY)
    names = [each.name for each in hosted]

    async def work() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _stopping(stop, log))
        log.info("worker started", services=names)
        await app.run(*names, stop=stop, settings=settings)
        log.info("worker stopped")

    _on_fast_loop(work())
    _leave()


def _stopping(stop: asyncio.Event, log: Any) -> Callable[[], None]:
    def signalled() -> None:
        if stop.is_set():
            log.warning("stopped at once", told="a second signal came")
            _flush_and_exit(130)
        log.info("worker stopping")
        stop.set()

    return signalled


def _on_fast_loop(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


def _leave() -> None:
    """End the process even where a plain function still runs in its thread: its message was released."""
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        _flush_and_exit(0)


def _flush_and_exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
