"""Measures what versions of RabbitMQ do differently, by plain AMQP and without Tidegate: the table of docs/versions.md.

BROKER=4.3 python -m tests.broker.differences
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import AMQPError

from bus import Fate
from bus.settings import Settings
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Parcel
from bus.transport.rabbitmq.link import Link
from tests.hostile.fields import array, string, table
from tests.hostile.messages import assembled

from .install import NoBroker
from .node import Node


QUORUM: Final = {"x-queue-type": "quorum"}
KEPT: Final = {"x-dead-letter-exchange": "", "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
DECIMAL: Final = b"D\x02\x00\x00\x01\xa4"
WITHIN: Final = 8.0

Fact = Callable[[Node, AbstractChannel], Awaitable[str]]


async def queue(channel: AbstractChannel, name: str, **arguments: Any) -> AbstractQueue:
    given = {"x-" + key.replace("_", "-"): value for key, value in arguments.items()}
    return await channel.declare_queue(name, durable=True, arguments=QUORUM | given)


async def put(channel: AbstractChannel, name: str, body: bytes = b"x", **properties: Any) -> None:
    await channel.default_exchange.publish(aio_pika.Message(body, **properties), name)


async def take(found: AbstractQueue, within: float = 3.0) -> aio_pika.abc.AbstractIncomingMessage | None:
    """Return the next message; None if none comes."""
    end = asyncio.get_running_loop().time() + within
    while asyncio.get_running_loop().time() < end:
        if (message := await found.get(fail=False)) is not None:
            return message
        await asyncio.sleep(0.05)
    return None


async def returns(channel: AbstractChannel, name: str, how: str, most: int, **arguments: Any) -> str:
    """Return how often a message was had until it was gone."""
    found = await queue(channel, name, **arguments)
    await put(channel, name)
    for number in range(most):
        message = await take(found)
        if message is None:
            return f"gone after {number}"
        await (message.nack(requeue=True) if how == "nack" else message.reject(requeue=True))
    return f"still there after {most}"


async def default_limit(node: Node, channel: AbstractChannel) -> str:
    return await returns(channel, "default", "reject", 25)


async def no_limit(node: Node, channel: AbstractChannel) -> str:
    return await returns(channel, "minus", "reject", 25, delivery_limit=-1)


async def nacks_count(node: Node, channel: AbstractChannel) -> str:
    return await returns(channel, "nacks", "nack", 25, delivery_limit=3)


async def requeued_where(node: Node, channel: AbstractChannel) -> str:
    found = await queue(channel, "where")
    for body in (b"1", b"2", b"3"):
        await put(channel, "where", body)
    first = await take(found)
    assert first is not None
    await first.nack(requeue=True)
    second = await take(found)
    assert second is not None
    return "in front" if second.body == b"1" else "at the end"


async def first_count(node: Node, channel: AbstractChannel) -> str:
    found = await queue(channel, "count")
    await put(channel, "count")
    message = await take(found)
    assert message is not None
    return f"{message.headers.get('x-delivery-count', 'absent')}"


async def forged_death(node: Node, channel: AbstractChannel) -> str:
    dead = await queue(channel, "deaths")
    await queue(channel, "dies", message_ttl=1, dead_letter_exchange="", dead_letter_routing_key="deaths")
    death = {"queue": "dies", "reason": "expired", "count": 7, "exchange": "", "routing-keys": ["dies"]}
    await put(channel, "dies", headers={"x-death": [death]})
    message = await take(dead)
    assert message is not None
    told = message.headers["x-death"]
    assert isinstance(told, list)
    return f"count {told[0]['count']}"  # type: ignore[index, call-overload]


async def keeps_expiration(node: Node, channel: AbstractChannel) -> str:
    await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "stream"})
    await queue(channel, "expires", dead_letter_exchange="", dead_letter_routing_key="kept")
    await put(channel, "expires", expiration=0.001)
    await channel.set_qos(1)
    gathered: asyncio.Queue[Any] = asyncio.Queue()
    tag = await (await channel.get_queue("kept", ensure=False)).consume(
        gathered.put, arguments={"x-stream-offset": "first"}
    )
    message = await gathered.get()
    await message.ack()
    await (await channel.get_queue("kept", ensure=False)).cancel(tag)
    return "taken off" if message.expiration is None else "kept"


async def streamed(node: Node, channel: AbstractChannel, name: str, headers: list[tuple[bytes, bytes]]) -> str:
    """Tell whether a message with these headers that expires gets into the stream of the dead, and the one after it."""
    await channel.declare_queue(f"{name}.dead", durable=True, arguments={"x-queue-type": "stream"})
    kept = {key.removeprefix("x-").replace("-", "_"): value for key, value in KEPT.items()}
    await queue(channel, name, dead_letter_routing_key=f"{name}.dead", **kept)
    (address,) = addresses(Settings(url=node.url()))
    link = await Link.connect(address)
    publishing = await link.channel(confirm=True)
    for each in (headers, []):
        made = assembled([], {"headers": each, "expiration": b"1", "delivery_mode": b"\x02"}, b"{}")
        parcel = Parcel("", "", name, made.flags, made.properties, b"{}", mandatory=True)
        assert await publishing.publish([parcel]).future == [Fate.STORED]
    await link.aclose()
    await channel.set_qos(10)
    dead = await channel.get_queue(f"{name}.dead", ensure=False)
    seen = 0
    gathered: asyncio.Queue[Any] = asyncio.Queue()
    tag = await dead.consume(gathered.put, arguments={"x-stream-offset": "first"})
    try:
        async with asyncio.timeout(WITHIN):
            while seen < 2:
                await (await gathered.get()).ack()
                seen += 1
    except TimeoutError:
        return "stuck, with all behind it"
    await dead.cancel(tag)
    return "dead-lettered"


async def decimal(node: Node, channel: AbstractChannel) -> str:
    return await streamed(node, channel, "decimal", [(b"price", DECIMAL)])


async def decimal_inside(node: Node, channel: AbstractChannel) -> str:
    return await streamed(node, channel, "inside", [(b"x-prices", array(array(DECIMAL)))])


async def stream_filter(node: Node, channel: AbstractChannel) -> str:
    return await streamed(node, channel, "filter", [(b"x-stream-filter-value", table([]))])


async def odd_text(node: Node, channel: AbstractChannel) -> str:
    return await streamed(node, channel, "odd", [(b"x-odd", string(b"\xff"))])


async def late_ack(node: Node, channel: AbstractChannel) -> str:
    found = await queue(channel, "late", consumer_timeout=1_800_000)
    await asyncio.to_thread(node.time_out_consumers, 1_500)
    await put(channel, "late")
    async with await aio_pika.connect(node.url()) as connection:
        late = await connection.channel()
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def say(what: str) -> None:
            if not ended.done():
                ended.set_result(what)

        late.close_callbacks.add(lambda _, error: say("the channel is closed"))
        underlying: Any = await late.get_underlay_channel()
        await (await late.get_queue("late", ensure=False)).consume(lambda _: asyncio.sleep(0), consumer_tag="slow")
        cancelled = underlying.consumers
        async with asyncio.timeout(20):
            while not ended.done():
                if "slow" not in cancelled:
                    say("the consumer is cancelled")
                await asyncio.sleep(0.1)
        told = ended.result()
    await found.purge()
    return told


async def transient(node: Node, channel: AbstractChannel) -> str:
    return await tried(node, lambda mine: mine.declare_queue("transient", durable=False))


async def locator(node: Node, channel: AbstractChannel) -> str:
    classic = {"x-queue-type": "classic", "x-queue-master-locator": "min-masters"}
    return await tried(node, lambda mine: mine.declare_queue("located", durable=True, arguments=classic))


async def delayed_retry(node: Node, channel: AbstractChannel) -> str:
    given = QUORUM | {"x-delayed-retry-type": "all", "x-delayed-retry-min": 1000}
    told = await tried(node, lambda mine: mine.declare_queue("delayed", durable=True, arguments=given))
    if told != "allowed":
        return told
    found = await channel.get_queue("delayed", ensure=False)
    await put(channel, "delayed")
    message = await take(found)
    assert message is not None
    await message.reject(requeue=True)
    return "ignored" if await take(found, 0.5) else "obeyed"


async def large(node: Node, channel: AbstractChannel) -> str:
    await queue(channel, "large")
    return await tried(node, lambda mine: put(mine, "large", bytes(17 * 1024 * 1024)))


async def look_without_rights(node: Node, channel: AbstractChannel) -> str:
    await queue(channel, "looked")
    await asyncio.to_thread(node.ctl, "add_user", "looker", "secret")
    await asyncio.to_thread(node.ctl, "set_permissions", "looker", "", ".*", ".*")
    queues = await tried(node, lambda mine: mine.declare_queue("looked", passive=True), "looker:secret")
    exchanges = await tried(node, lambda mine: mine.declare_exchange("amq.topic", passive=True), "looker:secret")
    return f"a queue: {queues}; an exchange: {exchanges}"


async def mirrored(node: Node, channel: AbstractChannel) -> str:
    try:
        await asyncio.to_thread(node.ctl, "set_policy", "mirrored", "^m", '{"ha-mode":"all"}')
    except RuntimeError:
        return "refused"
    return "allowed"


async def tried(node: Node, act: Callable[[AbstractChannel], Awaitable[Any]], login: str = "guest:guest") -> str:
    """Do it on a connection of its own, and tell what the broker says."""
    try:
        async with await aio_pika.connect(node.url().replace("guest:guest", login)) as connection:
            await act(await connection.channel())
    except (AMQPError, ConnectionError) as error:
        return f"refused: {type(error).__name__}"
    return "allowed"


async def forged_reply_to(node: Node, channel: AbstractChannel) -> str:
    forged = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA2MDA2MjE4NAAAAAAAAAABAAAAAA==.AAAAAAAAAAAAAAAAAAAAAA=="
    return await tried(node, lambda mine: put(mine, forged))


POISON: Final = (decimal, decimal_inside, stream_filter, odd_text)
"""What may leave a broker that declares no quorum queue any more: each has a broker of its own."""
FACTS: Final[dict[str, Fact]] = {
    "a message that comes back 25 times, in a quorum queue without a limit": default_limit,
    "the same with a limit of -1": no_limit,
    "the same with a limit of 3, given back by basic.nack": nacks_count,
    "what is given back is next": requeued_where,
    "x-delivery-count of a first delivery": first_count,
    "x-death of a client that says count 7, after one more death": forged_death,
    "the expiration of what expired and was dead-lettered": keeps_expiration,
    "into a stream: a decimal": decimal,
    "into a stream: a decimal inside of an x- header": decimal_inside,
    "into a stream: an x-stream-filter-value that is no text": stream_filter,
    "into a stream: text that is none": odd_text,
    "a transient queue of several connections": transient,
    "x-queue-master-locator": locator,
    "a mirrored classic queue, by policy": mirrored,
    "x-delayed-retry-type": delayed_retry,
    "a message of 17 MiB": large,
    "to look for a queue without the right to configure": look_without_rights,
    "a reply to a forged address": forged_reply_to,
    "an ack that is late": late_ack,
}


async def measured(node: Node, what: str, fact: Fact) -> None:
    connection = await aio_pika.connect(node.url())
    try:
        async with asyncio.timeout(60):
            told = await fact(node, await connection.channel())
    except (AMQPError, ConnectionError, TimeoutError) as error:
        told = f"{type(error).__name__}: {error}"[:80]
    print(f"| {what} | {told} |", flush=True)
    try:
        async with asyncio.timeout(5):
            await connection.close()
    except (AMQPError, ConnectionError, TimeoutError):
        pass  # what is stuck may keep it


def measure(facts: dict[str, Fact]) -> None:
    """Measure them one after the other on one broker."""
    node = Node()
    try:
        node.start()
        if len(facts) > 1:
            print(f"| RabbitMQ | {node.version()} |\n| --- | --- |", flush=True)
        for what, fact in facts.items():
            asyncio.run(measured(node, what, fact))
    finally:
        node.close()


def main() -> int:
    try:
        measure({what: fact for what, fact in FACTS.items() if fact not in POISON})
        for what, fact in FACTS.items():
            if fact in POISON:
                measure({what: fact})
    except NoBroker as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
