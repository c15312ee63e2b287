"""Administration: what was opened is closed, also where it came to nothing."""

from __future__ import annotations

import aio_pika
import pytest

from bus import Settings
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.administration import administration


async def test_a_connection_that_came_to_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """aio-pika closes what is not closed as it is forgotten, which may be where no event loop runs any more."""
    tried: list[aio_pika.Connection] = []

    async def silent(connection: aio_pika.Connection, timeout: float) -> None:
        tried.append(connection)
        raise TimeoutError

    monkeypatch.setattr(aio_pika.Connection, "connect", silent)
    with pytest.raises(ConnectionError, match="TimeoutError"):
        async with administration(addresses(Settings(url="amqp://127.0.0.1:1/"))):
            pytest.fail("nobody answers there")
    assert [connection.is_closed for connection in tried] == [True, True]
