"""`run --isolate`: a process for each service, or for each group of services, and their supervisor."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, TypeAlias

from .. import logs
from ..errors import ConfigurationError
from ..isolation.child import Child, spawned
from ..isolation.supervisor import Supervisor, meaning
from ..isolation.whole import Whole, answering
from ..settings import Settings, check_name
from .errors import explained, tell
from .leaving import leaving
from .signals import stop_on_signals


NO_BROKER = (
    "run --isolate needs a broker: the memory bus lives in one process, and the others would never hear of its "
    "messages. Set BUS_URL=amqp://…"
)

Handlers: TypeAlias = Mapping[str, Sequence[str]]
"""The handlers of each service of a process."""
TOGETHER: Final = 1.0
"""Seconds within which signals come to all processes that somebody stops at once."""
SUPERVISOR: Final = "supervisor"
"""The process of log lines that are of no other."""


def supervise(settings: Settings, chosen: Sequence[str], groups: Sequence[str]) -> int:
    """Keep a process for each group and each other service, until SIGTERM or Ctrl-C; return the exit code."""
    if settings.scheme in ("", "memory"):
        raise ConfigurationError(NO_BROKER)
    command = own_command()
    log = logs.logger()

    supervisor: Supervisor | None = None

    def kill() -> None:
        if supervisor is not None:
            supervisor.kill()

    async def work() -> int:
        nonlocal supervisor
        stop = asyncio.Event()
        stop_on_signals(stop, log, "supervisor stopping", kill)
        known = await handlers(command, stop)
        if isinstance(known, int):
            return 0 if stop.is_set() else known
        groups_of = compartments(list(known), chosen, groups)
        processes = working({name: {each: known[each] for each in of} for name, of in groups_of.items()})
        supervisor = Supervisor(processes, starting(command), grace=settings.grace, tell=tell)
        log.info("supervisor starting", processes={name: list(of) for name, of in processes.items()})
        async with answering(Whole(supervisor.kept, stop), settings.http):
            code = await supervisor.run(stop)
        log.info("supervisor stopped")
        return code

    return leaving(lambda runner: explained(lambda: runner.run(work())))


def own_command() -> list[str]:
    """Return the command that started this program, up to its own arguments, and `run`.

    Raises ConfigurationError where that cannot be told.
    """
    given = len(sys.argv) - 1
    started = sys.orig_argv[1:]
    if started[len(started) - given :] != sys.argv[1:]:
        raise ConfigurationError(
            f"run --isolate starts this program again for each service, and cannot tell how: it was started as "
            f"{sys.orig_argv} and now has the arguments {sys.argv[1:]}"
        )
    return [sys.executable, *started[: len(started) - given], "run"]


def starting(command: Sequence[str]) -> Callable[[str, Sequence[str]], AbstractAsyncContextManager[Child]]:
    """Return what starts the process of some services."""

    def start(name: str, services: Sequence[str]) -> AbstractAsyncContextManager[Child]:
        return spawned(name, [*command, *(f"--service={service}" for service in services)])

    return start


async def handlers(command: Sequence[str], stop: asyncio.Event) -> dict[str, list[str]] | int:
    """Return the handlers of each service, as a process that imports them tells; or its exit code, where it failed."""

    async def end(scout: Child) -> None:
        await stop.wait()
        scout.signal(signal.SIGKILL)

    async with spawned("", command) as scout, asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(end(scout))
        code = await scout.ended()
        ending.cancel()
    if code == -signal.SIGTERM:
        # whoever stops them all may have come to it first
        with suppress(TimeoutError):
            async with asyncio.timeout(TOGETHER):
                await stop.wait()
    if code < 0 and not stop.is_set():
        raise ConfigurationError(f"the services cannot be imported: the process that did ended by {meaning(code)}")
    found: dict[str, list[str]] = scout.told.get("handlers", {})
    return found if code == 0 else code


def compartments(known: Sequence[str], chosen: Sequence[str], groups: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the services of each process, by its name: the groups as written, and every other service by itself.

    Raises ConfigurationError for what is no group, and for a service that is unknown, not chosen, or in two groups.
    """
    hosted = dict.fromkeys(chosen or known)
    there = f"there are {', '.join(known)}"
    for service in hosted:
        if service not in known:
            raise ConfigurationError(f"there is no service {service!r}; {there}")
    processes: dict[str, tuple[str, ...]] = {}
    placed: dict[str, str] = {}
    for group in groups:
        name, _, listed = group.partition("=")
        members = tuple(each.strip() for each in listed.split(","))
        if not name or not all(members):
            raise ConfigurationError(f"--group {group!r}: write --group NAME=SERVICE,SERVICE")
        if check_name("group", name) in processes:
            raise ConfigurationError(f"--group {group!r}: there is a group {name!r} already")
        for service in members:
            if service not in known:
                raise ConfigurationError(f"--group {group!r}: there is no service {service!r}; {there}")
            if service not in hosted:
                raise ConfigurationError(f"--group {group!r}: {service!r} is not chosen by --service")
            if service in placed:
                raise ConfigurationError(f"--group {group!r}: {service!r} is in group {placed[service]!r} already")
            placed[service] = name
        processes[name] = members
    for service in hosted:
        if service in placed:
            continue
        if service in processes:
            raise ConfigurationError(f"--group {service}=…: the service {service!r}, which is not in it, has that name")
        processes[service] = (service,)
    return _told_apart(processes)


def working(processes: Mapping[str, Handlers]) -> dict[str, Handlers]:
    """Return the processes that have a handler, and tell which services are left out.

    Where none has, all are returned: each ends by that mistake, and says so.
    """
    found = {name: services for name, services in processes.items() if any(services.values())}
    idle = [service for name, services in processes.items() if name not in found for service in services]
    if found and idle:
        logs.logger().warning("services without handlers", services=idle, told="they have no process")
    return found or dict(processes)


def _told_apart(processes: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if SUPERVISOR in processes:
        raise ConfigurationError(
            f"no process may be called {SUPERVISOR!r}: log lines of the supervisor itself have that name; "
            f"write --group NAME={','.join(processes[SUPERVISOR])} with another NAME"
        )
    return processes
