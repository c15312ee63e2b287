"""The brokers of the tests themselves."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from tests.broker.node import Node
from tests.broker.proxy import Proxy


async def test_virtual_hosts_keep_tests_apart(vhost: str) -> None:
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.declare_queue("mine", durable=True)
    assert "/-" not in vhost


async def test_a_killed_broker_comes_back_with_its_data(own_broker: Node) -> None:
    async with await aio_pika.connect(own_broker.url()) as connection, connection.channel() as channel:
        await channel.declare_queue("kept", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"x", delivery_mode=2), "kept")
        await asyncio.sleep(2)  # a queue younger than a second does not survive
        own_broker.kill()
    own_broker.start()
    async with await aio_pika.connect(own_broker.url()) as connection, connection.channel() as channel:
        assert (await channel.declare_queue("kept", passive=True)).declaration_result.message_count == 1


async def test_the_proxy_drops_connections(proxy: Proxy, vhost_name: str) -> None:
    async with await aio_pika.connect(proxy.url(vhost_name)) as connection:
        channel = await connection.channel()
        proxy.drop()
        with pytest.raises(aio_pika.exceptions.AMQPError):
            await channel.declare_queue("mine")
