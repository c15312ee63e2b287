"""Connections of aio-pika, to declare and administer with: plain and short-lived, and closed in the end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from ...errors import ConfigurationError
from .address import Address
from .channel import LinkLost
from .link import Link, LinkRefused
from .names import at_any_address
from .supervisor import FIRST_PATIENCE, PATIENCE


CLOSE_WITHIN: Final = 2.0
HEARTBEAT: Final = 10


@asynccontextmanager
async def administration(addresses: Sequence[Address]) -> AsyncIterator[AbstractConnection]:
    """Open a plain connection to the first host that answers, and close it in the end.

    Raises LinkRefused for a definite no, and ConnectionError where no host answers, or where the connection is lost.
    After a failure a deque of addresses is turned: a host may answer and still not serve.
    """
    connection = await _connect(tuple(addresses))
    failed = True
    try:
        yield connection
        failed = False
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        # aiormq ends whoever waits on a connection that it lost by a cancellation
        raise ConnectionError("the connection was lost") from error
    except (RuntimeError, OSError, EOFError) as error:
        # and a call on one that is gone by such as these
        raise ConnectionError(f"the connection was lost: {error!r}") from error
    finally:
        if failed and isinstance(addresses, deque):
            addresses.rotate(-1)
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await connection.close()
        except (TimeoutError, AMQPError, RuntimeError, OSError, EOFError):
            pass  # the peer is gone
        finally:
            # what was cut off is done now: its `__del__` would do it, perhaps where no event loop runs any more
            await connection.close()
        if (task := asyncio.current_task()) and task.cancelling():
            # aiormq swallows a cancellation that comes while it closes a channel or a connection
            raise asyncio.CancelledError


async def _connect(addresses: Sequence[Address]) -> AbstractConnection:
    reasons, refused, patience = [], None, FIRST_PATIENCE
    while True:
        for address in addresses:
            try:
                return await _connect_to(address, patience)
            except ConfigurationError as error:
                refused = LinkRefused(str(error))
            except (OSError, EOFError, RuntimeError, AMQPError, UnicodeError) as error:
                reasons.append(f"{address}: {error!r}")
                if not isinstance(error, TimeoutError):
                    refused = await _refusal(address, patience) or refused
        if refused is not None:
            raise refused
        if patience == PATIENCE:
            raise ConnectionError("; ".join(reasons[-len(addresses) :]))
        patience = PATIENCE


async def _refusal(address: Address, patience: float) -> LinkRefused | None:
    """Return what our own link is refused for: it tells a definite no from a host that is in trouble."""
    try:
        link = await Link.connect(address, timeout=patience)
    except LinkRefused as refused:
        return refused
    except LinkLost:
        return None
    await link.aclose()
    return None


async def _connect_to(address: Address, patience: float) -> AbstractConnection:
    context, password = address.context(), address.secret()

    async def connected(host: str) -> AbstractConnection:
        url = aio_pika.connection.make_url(
            host=host,
            port=address.port,
            login=address.login,
            password=password,
            virtualhost=address.vhost,
            ssl=context is not None,
            heartbeat=HEARTBEAT,
        )
        connection = aio_pika.Connection(
            url, ssl_context=context, client_properties={"connection_name": f"{address.name} administration"}
        )
        if context is not None:
            connection.kwargs["server_hostname"] = address.host
        try:
            await connection.connect(timeout=patience)
        except BaseException:
            # or its `__del__` does, perhaps where no event loop runs any more
            await connection.close()
            raise
        return connection

    try:
        return await at_any_address(address.host, address.port, connected, within=patience)
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from error
