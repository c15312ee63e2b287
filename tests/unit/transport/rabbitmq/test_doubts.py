"""Doubts: what was acked last on a lost connection is acked again, and nothing else is."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace as Bare

import pytest

from bus import Ack, Message
from bus.clock import now
from bus.transport.rabbitmq.delivery import RabbitMQDelivery
from bus.transport.rabbitmq.doubts import LAST, Doubts, Settled


def handed(source: str, id: str = "5") -> Settled:
    delivery = object.__new__(RabbitMQDelivery)
    message = Message(id=id, type="order.placed", version=1, source=source, time=now(), body=b"{}")
    delivery._exchange = "events"
    delivery._settling = Bare(events="events")  # type: ignore[assignment]
    delivery._arrived = Bare(message=message, attempt=1)  # type: ignore[assignment]
    return delivery.handed


async def test_what_was_settled_is_known_when_it_comes_again_and_another_of_its_id_is_not() -> None:
    doubts = Doubts()
    doubts.add([handed("/orders")])
    assert not doubts.settled(handed("/legacy"), redelivered=True)
    assert doubts.settled(handed("/orders"), redelivered=True)


async def test_what_was_settled_is_known_however_long_nothing_could_come_and_forgotten_after_that() -> None:
    doubts, loop = Doubts(), asyncio.get_running_loop()
    doubts.add([handed("/orders")])
    now = loop.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: now + 10 * LAST)
        assert doubts.settled(handed("/orders"), redelivered=True)
        doubts.reached()
        assert doubts.settled(handed("/orders"), redelivered=True)
        patch.setattr(loop, "time", lambda: now + 11 * LAST + 1)
        assert not doubts.settled(handed("/orders"), redelivered=True)


async def test_what_is_acked_after_the_consumer_was_cancelled_is_known_when_it_comes_again() -> None:
    doubts, delivery = Doubts(), object.__new__(RabbitMQDelivery)
    message = Message(id="5", type="order.placed", version=1, source="/orders", time=now(), body=b"{}")
    channel = Bare(error=None, doubtful=True, settle=lambda _: None, settled_last=deque(maxlen=1))
    delivery._exchange, delivery._tag = "events", 1
    delivery._received = Bare(channel=channel)  # type: ignore[assignment]
    delivery._settling = Bare(events="events", doubts=doubts)  # type: ignore[assignment]
    delivery._arrived = Bare(message=message, attempt=1, redelivered=0)  # type: ignore[assignment]
    await delivery.settle(Ack())
    assert doubts.settled(handed("/orders"), redelivered=True)
