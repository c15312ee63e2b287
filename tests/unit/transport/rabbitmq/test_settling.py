"""Settling what is too large for any copy of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from pamqp import commands

from bus import Fate, Message
from bus.errors import BusUnavailable, DeliveryLost
from bus.message import Outgoing
from bus.outcome import Ack, DeadLetter, Failure
from bus.transport import Subscription
from bus.transport.rabbitmq import copies, delivery, wire
from bus.transport.rabbitmq.channel import Parcel, Received
from bus.transport.rabbitmq.delivery import RabbitMQDelivery, Settling
from bus.transport.rabbitmq.doubts import Doubts
from bus.transport.rabbitmq.largest import TooLarge
from bus.transport.rabbitmq.topology import Names


AT = datetime(2026, 1, 1, tzinfo=UTC)
REJECTED = DeadLetter(
    Failure(
        service="stock",
        handler="work",
        reason="rejected",
        error_type="Reject",
        error="no",
        traceback="",
        attempts=1,
        first_failed_at=AT,
        last_failed_at=AT,
        worker="here",
    )
)

SHIPPED = Outgoing(Message(id="2", type="order.shipped", version=1, source="/", time=AT, body=b"{}"))


class Channel:
    """Notes what becomes of a delivery."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.error: Exception | None = None
        self.done: asyncio.Queue[str] = asyncio.Queue()

    def reject(self, tag: int) -> None:
        self.done.put_nowait(f"{tag} dead-lettered by the broker")

    def release(self, tags: Sequence[int]) -> None:
        for tag in tags:
            self.done.put_nowait(f"{tag} given back")

    async def aclose(self) -> None:
        self.done.put_nowait("closed")


async def too_large(parcels: Sequence[Parcel]) -> None:
    raise TooLarge(11, 10, {parcel.id: Fate.REFUSED for parcel in parcels})


def delivered(
    channel: Channel, headers: dict[str, Any], subscription: dict[str, Any], publish: Any = None
) -> RabbitMQDelivery:
    flags, encoded = copies.encode({"message_id": "1", **headers})
    method = commands.Basic.Deliver("1", 7, False, "events", "order.placed")
    raw = wire.U32.pack(method.index) + method.marshal()
    received = Received(cast("Any", channel), raw, bytes(12) + flags.to_bytes(2, "big") + encoded, b"x" * 11)
    place = Subscription(service="stock", handler="work", **{"patterns": ("order.placed",), **subscription})
    unused: Any = None
    settling = Settling(place, Names(), publish, too_large, too_large, unused, unused, unused, unused, Doubts())
    return RabbitMQDelivery(received, settling)


async def test_f4_what_is_too_large_for_a_letter_is_dead_lettered_by_the_broker() -> None:
    channel = Channel()
    await delivered(channel, {"headers": {"a": "b", "x-delivery-count": 1}}, {}).settle(REJECTED)
    assert await channel.done.get() == "7 dead-lettered by the broker"


@pytest.mark.parametrize(
    ("properties", "subscription", "end"),
    [
        ({"type": "amqp-1.0"}, {}, "7 given back"),
        ({"headers": {"nested": {"a": [1]}}}, {}, "7 given back"),
        ({"headers": {"x-death": "forged"}}, {}, "7 given back"),
        ({"headers": {"x-death": "forged"}}, {"ordered": True}, "closed"),
        ({}, {"patterns": (), "sources": ("inventory_updates",)}, "7 given back"),
    ],
)
async def test_f4_what_the_broker_cannot_dead_letter_is_held_and_takes_nothing_along(
    properties: dict[str, Any],
    subscription: dict[str, Any],
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(delivery, "LONGEST_HOLD", 0.05)
    channel = Channel()
    with pytest.raises(DeliveryLost, match="it comes again") as told:
        await delivered(channel, properties, subscription).settle(REJECTED)
    assert told.value.held == (0 if end == "closed" else 0.05)
    assert channel.done.empty() or end == "closed"
    async with asyncio.timeout(10):
        assert await channel.done.get() == end
    assert channel.done.empty()
    assert "raise the broker's max_message_size" in caplog.text


@pytest.mark.parametrize(
    ("away", "expected"), [(False, ["stored", "completed"]), (True, [])], ids=["the broker is there", "it is away"]
)
async def test_l2_what_is_to_be_completed_is_so_behind_its_events_though_its_channel_is_gone(
    away: bool, expected: list[str]
) -> None:
    channel, happened = Channel(), list[str]()
    channel.error = ConnectionError("gone")

    async def publish(published: Sequence[Outgoing]) -> None:
        if away:
            raise BusUnavailable("no connection", {})
        happened.append("stored")

    async def complete() -> None:
        happened.append("completed")

    with pytest.raises(DeliveryLost, match="its channel is gone"):
        await delivered(channel, {}, {}, publish).settle(Ack((SHIPPED,), complete=complete))
    assert happened == expected


async def test_what_is_only_to_be_published_is_not_once_its_channel_is_gone() -> None:
    channel = Channel()
    channel.error = ConnectionError("gone")
    with pytest.raises(DeliveryLost, match="its channel is gone"):
        await delivered(channel, {}, {}).settle(Ack((SHIPPED,)))
