"""Hostile messages on their way: made from a seed, each with a token of its own, and sent as a stranger does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from bus import Fate
from bus.settings import Settings
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Channel, Parcel
from bus.transport.rabbitmq.link import Link

from .messages import Hostile, accepted, crossed


EACH: Final = 5
"""Messages to each that the strategies make: itself, and crosses of what they made."""
AT_ONCE: Final = 100
HANDLERS: Final = ("fine", "raises", "ladder", "later", "rejects", "typed")


@dataclass(frozen=True)
class Sent:
    """One message as it was sent."""

    token: int
    handler: str
    hostile: Hostile
    body: bytes
    direct: bool


def messages(amount: int, seeded: int) -> list[Hostile]:
    """Return so many hostile messages, the same for the same seed."""
    made: list[Hostile] = []
    kept = settings(
        max_examples=amount,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(seeded)
    @kept
    @given(accepted)
    def make(hostile: Hostile) -> None:
        made.append(hostile)

    make()
    return made


def addressed(hostile: Sequence[Hostile], amount: int, seeded: int, first: int = 0) -> list[Sent]:
    """Return so many messages to send, each with a body that tells its token: numbers from `first` on."""
    chance = random.Random(seeded)
    sent = []
    for token in range(first, first + amount):
        made = token - first
        message = hostile[made] if made < len(hostile) else crossed(hostile, chance)
        # the broker itself sends what is published to queues by name to all that CC names; no copy of ours may
        direct = chance.random() < 0.25 and not (message.has("CC") or message.has("BCC"))
        sent.append(Sent(token, chance.choice(HANDLERS), message, marked(message.body, token), direct))
    return sent


def marked(body: bytes, token: int) -> bytes:
    """Return the body with a token in it; what is JSON stays JSON."""
    mark = b"#T%07d#" % token
    if b'"number": 1}' in body:
        return body.replace(b'"number": 1}', b'"number": 1, "token": "%s"}' % mark)
    if body[:1] == b"{" and body[-1:] == b"}":
        return body[:-1] + (b"," if len(body) > 2 else b'"number": 1, ') + b'"token": "%s"}' % mark
    return body + mark


async def publish(url: str, sent: Sequence[Sent]) -> None:
    """Send them as a stranger does, and see that the broker took every one."""
    (address,) = addresses(Settings(url=url))
    link = await Link.connect(address)
    channel = await link.channel(confirm=True)
    for start in range(0, len(sent), AT_ONCE):
        batch = channel.publish([_parcel(channel, each) for each in sent[start : start + AT_ONCE]])
        async with asyncio.timeout(30):
            fates = await batch.future
        wrong = [each for each, fate in zip(sent[start:], fates, strict=False) if fate is not Fate.STORED]
        assert not wrong, f"{channel.error}: {wrong[0]}"
    await link.aclose()


def _parcel(channel: Channel, sent: Sent) -> Parcel:
    exchange, key = ("", b"hostile." + sent.handler.encode()) if sent.direct else ("events", b"")
    if not sent.direct:
        word = b"typed.numbered" if sent.handler == "typed" else sent.handler.encode()
        key = word + b"." + sent.hostile.words if sent.hostile.words and sent.handler != "typed" else word
    # keys that are no text cannot be asked for, so the frame is made here
    named = key.decode("latin-1")
    payload = b"\x00\x3c\x00\x28\x00\x00" + wire.short(exchange) + wire.short_bytes(key) + b"\x01"
    frame = wire.HEAD.pack(wire.METHOD, channel.number, len(payload)) + payload + wire.END_OCTET
    channel._methods[exchange, named, True] = frame
    return Parcel(
        str(sent.token), exchange, named, sent.hostile.flags, sent.hostile.properties, sent.body, mandatory=True
    )
