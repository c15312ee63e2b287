"""Host names, looked up where no handler can be in the way.

asyncio looks them up in the loop's default executor, whose few threads `asyncio.to_thread` of any handler may hold.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.to_thread


T = TypeVar("T")


async def at_any_address(host: str, port: int, connect: Callable[[str], Awaitable[T]], *, within: float) -> T:
    """Connect to the addresses of a host, in their order, until one of them is there.

    Raises OSError for a name that is not known, TimeoutError where that takes longer than `within` seconds, and what
    the last address raised.
    """
    async with asyncio.timeout(within):
        *others, last = await _addresses(host, port)
    for address in others:
        try:
            return await connect(address)
        except OSError:
            continue
    return await connect(last)


async def _addresses(host: str, port: int) -> list[str]:
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass

    def look_up() -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(where[0]) for *_, where in found))

    return await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
