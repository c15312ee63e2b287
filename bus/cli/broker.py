"""The broker that the settings name, for as long as a command needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .. import client, logs
from .. import settings as environment
from ..errors import ConfigurationError
from ..settings import Settings
from ..transport import DeadLetters, Transport
from .errors import tell_unknown


@asynccontextmanager
async def dead_letters() -> AsyncIterator[DeadLetters]:
    """Open them; raises ConfigurationError without a broker."""
    async with broker("dead letters are kept by a broker") as transport:
        yield transport.dead_letters


@asynccontextmanager
async def broker(why: str) -> AsyncIterator[Transport]:
    """Open the transport to a broker; raises ConfigurationError, which says why, without one."""
    settings = environment.read()
    if not settings.url or settings.scheme == "memory":
        raise ConfigurationError(f"{why}: set BUS_URL, such as amqp://guest:guest@localhost/")
    async with opened(settings) as transport:
        yield transport


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Transport]:
    """Open the transport of the settings; what the broker refuses is told by the command itself."""
    logs.configure("error", "text")
    tell_unknown()
    async with client.transport(settings) as transport:
        yield transport
