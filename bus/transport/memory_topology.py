"""The topology of the memory transport: it is gone with the process, so there is nothing of other versions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from ..errors import ConfigurationError, TidegateError
from ..topology import Migration, Part, Pruned, Survey
from . import Subscription


ONLY_CODE = "memory:// keeps nothing when a process ends: this is what the code declares, and no more is known"


class MemoryTopology:
    """Tells what the code declares."""

    async def note(self, app: str, worker: str, subscriptions: Sequence[Subscription]) -> Sequence[Part]:
        """Note nothing: nobody could read it."""
        return ()

    async def survey(self, app: str, subscriptions: Sequence[Subscription]) -> Survey:
        """Return what the code declares."""
        declared = tuple(
            Part(
                kind="queue",
                name=subscription.name,
                service=subscription.service,
                bindings=tuple(("events", pattern) for pattern in subscription.patterns),
            )
            for subscription in subscriptions
        )
        return Survey(app=app, broker="memory://", declared=declared, trouble=ONLY_CODE)

    async def apply(self, app: str, subscriptions: Sequence[Subscription]) -> Sequence[TidegateError]:
        """Raise ConfigurationError: there is no broker."""
        raise ConfigurationError("there is nothing to declare on memory://: set BUS_URL to a broker")

    async def prune(
        self,
        app: str,
        subscriptions: Sequence[Subscription],
        chosen: Sequence[Part],
        *,
        messages: bool = False,
        consumers: bool = False,
    ) -> Sequence[Pruned]:
        """Raise ConfigurationError: there is no broker."""
        raise ConfigurationError("there is nothing to prune on memory://: set BUS_URL to a broker")

    async def migration(self, app: str, subscription: Subscription) -> Migration:
        """Raise ConfigurationError: there is no broker."""
        raise ConfigurationError("there is nothing to migrate on memory://: set BUS_URL to a broker")

    async def migrate(self, app: str, subscription: Subscription, tell: Callable[[str, int], None]) -> int:
        """Raise ConfigurationError: there is no broker."""
        raise ConfigurationError("there is nothing to migrate on memory://: set BUS_URL to a broker")

    async def moving(self, subscription: Subscription) -> AsyncIterator[bool]:
        """Yield once that it is not being migrated."""
        yield False
