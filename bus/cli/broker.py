"""The dead letters at the broker that the settings name, for as long as a command needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .. import client, logs
from .. import settings as environment
from ..errors import ConfigurationError
from ..transport import DeadLetters


@asynccontextmanager
async def dead_letters() -> AsyncIterator[DeadLetters]:
    """Open them; raises ConfigurationError without a broker."""
    settings = environment.read()
    if not settings.url or settings.scheme == "memory":
        raise ConfigurationError(
            "dead letters are kept by a broker: set BUS_URL, such as amqp://guest:guest@localhost/"
        )
    # what the broker refuses is told by the command itself
    logs.configure("error", "text")
    async with client.transport(settings) as transport:
        yield transport.dead_letters
