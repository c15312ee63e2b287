"""Delays of any length: a cascade of queues whose waits are powers of two of 100 ms, one cascade a virtual host.

A message enters at its highest set bit and leaves at the bottom; zero bits cost nothing. The routing key stays the
original on the whole way, the bits travel in headers. At the bottom `tidegate-due` says whether it goes on to everyone
or to one queue.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractExchange
from pamqp import commands
from pamqp.base import Frame
from pamqp.common import FieldTable

from .address import Address
from .administration import administration
from .topology import DELIVERY_LIMIT, Names


UNIT: Final = timedelta(milliseconds=100)
LEVELS: Final = 28
"""Bits of a delay: 2²⁸ × 100 ms are 310 days."""
DUE: Final = "tidegate-due"
BIT: Final = "tidegate-d"
PREFIX: Final = "delay."
DONE: Final = "delay.due"
RETURN: Final = "delay.return"
VOID: Final = "delay.void"
LOST: Final = "delay.unroutable"
"""What finds its queue gone: on to the dead letters of its service, where that has one, else kept in this queue."""
KEPT: Final = "delay.kept"
TO_EVENTS: Final = "events"
TO_QUEUE: Final = "queue"


def headers(delay: timedelta, due: str) -> dict[str, Any]:
    """Return the headers that carry a message through the cascade; the delay is rounded up, so never early."""
    units = min(-(-delay // UNIT), (1 << LEVELS) - 1)
    return {DUE: due, **{f"{BIT}{bit}": bool(units >> bit & 1) for bit in range(units.bit_length())}}


def entrance(names: Names, delay: timedelta) -> str:
    """Return the exchange at which a delay enters: that of its highest bit."""
    units = min(-(-delay // UNIT), (1 << LEVELS) - 1)
    return _level(names, units.bit_length() - 1)


async def declare(addresses: Sequence[Address], names: Names, begin: int = 0) -> AsyncGenerator[int, None]:
    """Declare the cascade from the bottom up, from a level on; yields how many levels there are by then. Idempotent.

    Raises what the broker says where the user may not.
    """
    async with administration(addresses) as connection, connection.channel() as channel:
        below: AbstractExchange = await _declare_bottom(channel, names)
        if begin:
            below = await channel.get_exchange(_level(names, begin - 1), ensure=False)
        for level in range(begin, LEVELS):
            below = await _declare_level(channel, names, level, below)
            yield level + 1


def parts(names: Names) -> list[Frame]:
    """Return the commands that look for every exchange and queue of the cascade, and change nothing."""
    exchanges = [_level(names, level) for level in range(LEVELS)]
    exchanges += [names.of(name) for name in (DONE, RETURN, LOST, KEPT)]
    queues = [_level(names, level) for level in range(LEVELS)] + [names.of(VOID), names.of(LOST)]
    return [
        *(commands.Exchange.Declare(exchange=name, passive=True) for name in exchanges),
        *(commands.Queue.Declare(queue=name, passive=True) for name in queues),
    ]


def _level(names: Names, level: int) -> str:
    return names.of(f"delay.{level}")


async def _declare_level(
    channel: AbstractChannel, names: Names, level: int, below: AbstractExchange
) -> AbstractExchange:
    name = _level(names, level)
    arguments: FieldTable = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-message-ttl": (1 << level) * int(UNIT / timedelta(milliseconds=1)),
        "x-dead-letter-exchange": below.name,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    exchange = await channel.declare_exchange(name, "headers", durable=True)
    queue = await channel.declare_queue(name, durable=True, arguments=arguments)
    await queue.bind(exchange, arguments={"x-match": "all", f"{BIT}{level}": True})
    await below.bind(exchange, arguments={"x-match": "all", f"{BIT}{level}": False})
    return exchange


async def _declare_bottom(channel: AbstractChannel, names: Names) -> AbstractExchange:
    """Declare where due messages go: on to everyone, to one queue, or, if that is gone, to `delay.unroutable`."""
    kept = await channel.declare_exchange(names.of(KEPT), "fanout", durable=True)
    quorum: FieldTable = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    await (await channel.declare_queue(names.of(LOST), durable=True, arguments=quorum)).bind(kept)
    lost = names.of(LOST)
    await channel.declare_exchange(lost, "direct", durable=True, arguments={"alternate-exchange": kept.name})
    alternate: FieldTable = {"alternate-exchange": lost}
    due = await channel.declare_exchange(names.of(DONE), "headers", durable=True, arguments=alternate)
    events = await channel.declare_exchange(names.events, "topic", durable=True)
    await events.bind(due, arguments={"x-match": "all", DUE: TO_EVENTS})
    # an event that nobody wants must count as delivered, or at-least-once would keep it for ever; a classic queue would
    # be gone with its node, and nothing could be delayed meanwhile
    nothing: FieldTable = {"x-queue-type": "quorum", "x-message-ttl": 0}
    void = await channel.declare_queue(names.of(VOID), durable=True, arguments=nothing)
    await void.bind(due, arguments={"x-match": "all", DUE: TO_EVENTS})
    back = await channel.declare_exchange(names.of(RETURN), "direct", durable=True, arguments=alternate)
    await back.bind(due, arguments={"x-match": "all", DUE: TO_QUEUE})
    return due
