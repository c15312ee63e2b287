"""What tests of the link share: queues, messages that name their queue, and consumers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from pamqp import commands

from bus.errors import Fate
from bus.settings import Settings
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import Address, addresses
from bus.transport.rabbitmq.channel import Channel, Parcel, Received
from bus.transport.rabbitmq.consumer import Inbox
from bus.transport.rabbitmq.link import Link


QUORUM: Final = {"x-queue-type": "quorum"}


def address_of(url: str) -> Address:
    return addresses(Settings(url=url))[0]


@asynccontextmanager
async def connected(url: str, heartbeat: float = 30) -> AsyncIterator[Link]:
    link = await Link.connect(replace(address_of(url), heartbeat=heartbeat))
    try:
        yield link
    finally:
        await link.aclose()


async def declare(link: Link, queue: str, arguments: dict[str, Any] | None = None) -> None:
    channel = await link.channel()
    await channel.rpc(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments or {}))
    await channel.aclose()


async def count(link: Link, queue: str) -> int:
    """Return how many messages are ready.

    What was not acked is back in a classic queue before the close of its channel is answered; in a quorum queue, later.
    """
    channel = await link.channel()
    declared = await channel.rpc(commands.Queue.Declare(queue=queue, passive=True))
    await channel.aclose()
    return int(declared.message_count)


def to(queue: str, id: str, body: bytes = b"body") -> Parcel:
    properties = wire.U32.pack(0) + b"\x02" + wire.short(id)
    return Parcel(id, "", queue, 1 << 13 | 1 << 12 | 1 << 7, properties, body, mandatory=True)


async def fill(link: Link, queue: str, amount: int) -> None:
    channel = await link.channel(confirm=True)
    fates = await channel.publish([to(queue, str(n), str(n).encode()) for n in range(amount)]).future
    assert set(fates) == {Fate.STORED}
    await channel.aclose()


async def consume(link: Link, queue: str, prefetch: int) -> tuple[Channel, Inbox]:
    channel, inbox = await link.channel(), Inbox([])
    channel.on_delivery = inbox.put
    await channel.rpc(commands.Basic.Qos(prefetch_count=prefetch))
    await channel.rpc(commands.Basic.Consume(queue=queue, consumer_tag="tag"))
    return channel, inbox


def settle(received: Received) -> str:
    received.channel.settle(wire.delivered(received.method)[0])
    return received.body.decode()
