"""`run`: the worker, until SIGTERM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .. import client, logs
from .. import settings as environment
from ..app import App
from ..errors import ConfigurationError
from ..service import Service
from ..settings import Settings
from ..watchdog import watching
from .errors import MISTAKE, explained, tell
from .leaving import flush, leaving
from .signals import stop_on_signals


if TYPE_CHECKING:
    from ..health import Health


MEMORY: Final = (
    "BUS_URL is not set, so this worker runs on the memory bus: nobody else can publish to it, and everything is gone "
    "when it ends. Set BUS_URL=amqp://… for a real one."
)


def run(
    app: App,
    service: Annotated[list[str] | None, typer.Option(help="Host this service only; may be given again.")] = None,
    isolate: Annotated[bool, typer.Option(help="Give each service a process of its own, kept by this one.")] = False,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SERVICE,SERVICE", help="With --isolate: let services share a process; may be given again."
        ),
    ] = None,
    supervised: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Be the worker, until SIGTERM or Ctrl-C; a second signal stops at once."""
    from .isolate import SUPERVISOR, supervise

    settings = environment.read()
    if supervised is not None:
        return _supervised(app, service or (), settings, supervised)
    logs.configure(settings.log_level, settings.log_format, process=SUPERVISOR if isolate else "")
    environment.warn_of_unknown()
    if isolate:
        return supervise(settings, service or (), group or ())
    if group:
        raise ConfigurationError("--group goes with --isolate: without it all services share this process")
    return _on_fast_loop(lambda: _alone(app, service or (), settings))


def _alone(app: App, services: Sequence[str], settings: Settings) -> Coroutine[Any, Any, int]:
    """Be the one process of these services."""
    from ..health import served

    hosted = app.chosen(*services)
    if not settings.url:
        logs.logger().warning("memory bus", told=MEMORY)
        settings = replace(settings, url="memory://")
    return _work(app, hosted, settings, lambda health: served(health, settings.http))


def _supervised(app: App, services: Sequence[str], settings: Settings, given: str) -> int:
    """Be one process of `run --isolate`; without a name, only tell what there is to host."""
    from ..isolation.supervised import Supervised, threadsafe

    name, _, descriptor = given.rpartition("=")
    place = Supervised(name, int(descriptor), settings.grace)
    if not name:
        return leaving(lambda _: explained(lambda: place.tell(handlers=_handlers(app))))
    logs.configure(settings.log_level, settings.log_format, process=name)

    @asynccontextmanager
    async def answering(health: Health) -> AsyncIterator[None]:
        place.answering(threadsafe(health))
        yield

    def work() -> Coroutine[Any, Any, int]:
        hosted = app.chosen(*services)
        return _work(app, hosted, settings, answering, lambda handlers: place.tell(started=handlers), at_once=None)

    def explain(work: Callable[[], int]) -> int:
        mistakes: list[str] = []
        code = explained(work, mistakes.append)
        if code == MISTAKE:
            # each process may find the same one: it is said by the supervisor, once
            place.tell(mistake=mistakes)
        else:
            for text in mistakes:
                tell(text)
        return code

    return _on_fast_loop(work, explain)


def _handlers(app: App) -> dict[str, list[str]]:
    return {each.name: [handler.subscription_name for handler in each.handlers] for each in app.services}


async def _work(
    app: App,
    hosted: Sequence[Service],
    settings: Settings,
    serving: Callable[[Health], AbstractAsyncContextManager[object]],
    started: Callable[[int], None] = lambda _: None,
    *,
    at_once: Callable[[], None] | None = lambda: None,
) -> int:
    """Host the services until a signal; `serving` answers for the worker meanwhile, `at_once` is of a second signal."""
    from ..health import Health

    stop, log = asyncio.Event(), logs.logger()
    stop_on_signals(stop, log, "worker stopping", at_once)
    names = [each.name for each in hosted]
    async with client.transport(settings) as transport:
        log.info("worker starting", services=names)
        worker = app.worker(transport, hosted, settings)
        worker.stubborn = _leave_now

        def consuming() -> None:
            log.info("worker started", services=names, handlers=worker.consuming)
            started(worker.consuming)

        with watching(worker.flows) as watchdog:
            async with serving(Health(worker, stop, watchdog)):
                await worker.run(stop, consuming)
    log.info("worker stopped")
    # every handler was refused its queue: whoever keeps workers running must see that this one failed
    return 0 if stop.is_set() else MISTAKE


def _on_fast_loop(
    work: Callable[[], Coroutine[Any, Any, int]], explain: Callable[[Callable[[], int]], int] = explained
) -> int:
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    return leaving(lambda runner: explain(lambda: runner.run(work())), factory)


def _leave_now() -> None:
    """End the process under a handler that does not end: its message was never settled, and comes again."""
    logs.logger().info("worker stopped")
    flush()
    os._exit(0)
