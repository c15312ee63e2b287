"""App: settings, transport and services become a worker; wiring only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from . import client, discovery
from . import settings as environment
from .errors import ConfigurationError
from .event import Events
from .logs import logger
from .middleware.logging import logging
from .resources import Key
from .service import Middleware, Service, check, wraps
from .settings import Settings
from .transport import Transport
from .watchdog import watching
from .worker import Worker


IN_MEMORY: Final = (
    'SqliteStore(":memory:") is for tests: its completions, and all that handlers write there, are this process\'s own '
    "and end with it, so what comes again after a restart, or to a replica, runs again. Give it a file"
)


class App:
    """The services and events of one application: `App("shop", events="shop.events", services="shop.handlers")`.

    `events` and `services` name packages; their modules are imported when first needed. `commands` are functions that
    the command line offers beside its own; `middleware` wraps every handler of every service, the first outermost.
    """

    def __init__(
        self,
        name: str,
        *,
        events: str,
        services: str,
        commands: Sequence[Callable[..., Any]] = (),
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self.name = environment.check_name("app", name)
        if callable(commands):
            told = getattr(commands, "__name__", "…")
            raise ConfigurationError(f"app {name!r}: commands=[{told}] is how one command is given")
        self.commands = tuple(commands)
        self._events_package = events
        self._services_package = services
        self._middleware = wraps(f"app {name!r}", middleware)

    @cached_property
    def services(self) -> tuple[Service, ...]:
        """The services found in the package, by name. Raises ConfigurationError where they do not fit together."""
        found = discovery.services(self._services_package)
        check(found)
        return found

    @cached_property
    def events(self) -> Events:
        """The event classes found in the package, and those that handlers name."""
        return discovery.events(self._events_package, self.services)

    def chosen(self, *names: str) -> tuple[Service, ...]:
        """Return the services of these names, each once, or all, as they are to be hosted.

        Raises ConfigurationError for an unknown one, and where none of them has a handler.
        """
        known = {service.name: service for service in self.services}
        if unknown := [name for name in names if name not in known]:
            raise ConfigurationError(f"there is no service {unknown[0]!r}; there are {', '.join(known)}")
        chosen = tuple(known[name] for name in dict.fromkeys(names)) or self.services
        if not any(service.handlers for service in chosen):
            none = [service.name for service in chosen]
            raise ConfigurationError(
                f"nothing to host: {', '.join(none)} without a handler; declare one with `@{none[0]}.on(…)` in a "
                f"module of {self._services_package!r}, or host a service that has one"
            )
        return chosen

    async def run(self, *services: str, stop: asyncio.Event | None = None, settings: Settings | None = None) -> None:
        """Be the worker of these services (all by default) until `stop` is set or the call is cancelled.

        Without a `BUS_URL` it runs on the memory bus, which nobody else can publish to. Raises ConfigurationError where
        `BUS_HTTP` cannot be listened at.
        """
        from . import health

        if settings is None:
            environment.warn_of_unknown()
        chosen = settings or environment.read()
        chosen = chosen if chosen.url else replace(chosen, url="memory://")
        hosted, stop = self.chosen(*services), stop or asyncio.Event()
        async with client.transport(chosen) as transport:
            worker = self.worker(transport, hosted, chosen)
            with watching(worker.flows) as watchdog:
                async with health.served(health.Health(worker, stop, watchdog), chosen.http):
                    await worker.run(stop)

    def worker(
        self,
        transport: Transport,
        services: Sequence[Service],
        settings: Settings,
        *,
        provided: Mapping[Key, Any] | None = None,
        log: Middleware | None = None,
    ) -> Worker:
        """Return the worker of these services on an open transport.

        `provided` are resources by type that replace declared ones; `log` is told of settled outcomes instead.
        """
        _warn_of_stores_in_memory(services, settings)
        return Worker(
            transport,
            services,
            app=self.name,
            events=self.events,
            settings=settings,
            log=log if log is not None else logging(),
            middleware=self._middleware,
            provided=provided,
        )

    def connect(self, settings: Settings | None = None) -> AbstractAsyncContextManager[client.Bus]:
        """Connect to the bus as this app: `async with app.connect() as bus`. As `connect()`, with the app's source."""
        return client.connect(source=f"/{self.name}", settings=settings)

    def cli(self) -> None:
        """Run the command line of the app with this process's arguments; exits."""
        from .cli import main

        main(self)


def _warn_of_stores_in_memory(services: Sequence[Service], settings: Settings) -> None:
    if settings.scheme in ("", "memory") or all(service.store is None for service in services):
        return
    # not above: only who has a store needs SQLite
    from .store.sqlite import SqliteStore

    names = [each.name for each in services if isinstance(each.store, SqliteStore) and not each.store.lasting]
    if names:
        logger().warning("store in memory", services=names, told=IN_MEMORY)
