"""A turn that one has at a time, by a queue that only one connection may have: it goes away with the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pamqp import commands

from ...errors import AccessRefused, BusUnavailable
from .channel import Channel, ChannelClosed
from .link import Link
from .stream import Streams


REFUSED: Final = 403
LOCKED: Final = 405


@asynccontextmanager
async def alone(streams: Streams, queue: str, taken: str) -> AsyncIterator[Channel]:
    """Have the turn that a queue stands for, and a channel. Raises LookupError, with `taken`, where another has it."""
    channel = await (await streams.link()).channel()
    try:
        await ask(channel, commands.Queue.Declare(queue=queue, exclusive=True))
    except ChannelClosed as error:
        if error.code == LOCKED:
            raise LookupError(taken) from error
        if error.code == REFUSED:
            raise AccessRefused(f"{error.text}; it needs the right to configure, write and read") from error
        raise
    try:
        yield channel
    finally:
        if channel.error is None:
            await ask(channel, commands.Queue.Delete(queue=queue))
            channel.leave()


def still(link: Link) -> None:
    """Raise what ended the link by which one has the turn: another may have it by now."""
    if link.error is not None:
        raise link.error


async def ask(channel: Channel, command: Any, within: float = 10.0) -> Any:
    """Send a request and return the answer. Raises BusUnavailable where there is none in time."""
    try:
        async with asyncio.timeout(within):
            return await channel.rpc(command)
    except TimeoutError as error:
        raise BusUnavailable(f"the broker did not answer within {within:g} s: run it again", {}) from error
