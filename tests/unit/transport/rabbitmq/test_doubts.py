"""Doubts: what was acked last on a lost connection is acked again, and nothing else is."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace as Bare
from typing import cast

from bus import Ack, Message
from bus.clock import now
from bus.transport.rabbitmq.channel import Channel
from bus.transport.rabbitmq.delivery import RabbitMQDelivery
from bus.transport.rabbitmq.doubts import LAST, MOST, Doubts, Settled


LIVES = cast("Channel", Bare(error=None))


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


async def test_l2_what_was_settled_is_known_until_all_of_its_queues_were_consumed_for_long_enough() -> None:
    doubts = Doubts()
    doubts.of("own")
    doubts.of("foreign")
    doubts.add([handed("/orders")])
    doubts.worked("own", 10 * LAST)
    doubts.worked("foreign", LAST - 1)
    assert doubts.settled(handed("/orders"), redelivered=True)
    doubts.worked("foreign", 1)
    assert not doubts.settled(handed("/orders"), redelivered=True)
    assert doubts.none


async def test_what_is_noted_late_is_known_for_as_long() -> None:
    doubts = Doubts()
    doubts.of("own")
    doubts.add([handed("/orders", "1")])
    doubts.worked("own", LAST - 1)
    doubts.add([handed("/orders", "2")])
    doubts.add([])
    doubts.worked("own", LAST - 1)
    assert doubts.settled(handed("/orders", "2"), redelivered=True)
    doubts.worked("own", 1)
    assert doubts.none


async def test_only_so_much_is_noted_but_never_less_than_a_prefetch() -> None:
    doubts, noted = Doubts(), [handed("/orders", str(number)) for number in range(2 * MOST)]
    doubts.of("own")
    doubts.add(noted)
    assert doubts.settled(noted[0], redelivered=True)
    for each in noted:
        doubts.add([each])
        doubts.came(each, (LIVES, 1))
    assert not doubts.settled(noted[MOST - 1], redelivered=True)
    assert doubts.settled(noted[MOST], redelivered=True)
    assert not doubts.came_again(noted[MOST - 1], (LIVES, 0))
    assert doubts.came_again(noted[MOST], (LIVES, 0))


async def test_what_came_again_counts_for_what_came_before_it_until_it_is_acked_or_lost() -> None:
    doubts, key, other = Doubts(), handed("/orders"), cast("Channel", Bare(error=None))
    doubts.came(key, (LIVES, 2))
    for handing, again in (((LIVES, 1), True), ((LIVES, 2), False), ((LIVES, 3), False), ((other, 3), True)):
        assert doubts.came_again(key, handing) is again
        doubts.acked(key, (LIVES, 1))
    doubts.lost()
    assert doubts.any_again
    doubts.acked(key, (LIVES, 2))
    assert not doubts.any_again
    doubts.came(key, (cast("Channel", Bare(error=ConnectionError())), 2))
    doubts.lost()
    assert not doubts.any_again


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
