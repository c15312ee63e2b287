"""Administration: its connections are closed in the end, whatever their peer does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.transport.rabbitmq import administration
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy

from .links import address_of


async def test_a_connection_whose_peer_does_not_answer_is_closed_for_good(
    broker: Shared, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aio-pika closes what is not closed as it is forgotten, which may be where no event loop runs any more."""
    monkeypatch.setattr(administration, "CLOSE_WITHIN", 0.05)
    async with Proxy(broker.port).running() as proxy:
        async with administration.administration([replace(address_of(vhost), port=proxy.port)]) as connection:
            proxy.blackhole(up=True, down=True)
        assert connection.is_closed
