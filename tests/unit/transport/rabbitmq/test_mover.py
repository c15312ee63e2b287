"""Copies of what is moved: they mean what the originals do, whoever wrote them."""

from __future__ import annotations

from typing import Any, cast

from pamqp import commands

from bus.transport import Subscription
from bus.transport.rabbitmq import copies, wire
from bus.transport.rabbitmq.channel import Parcel, Received
from bus.transport.rabbitmq.delivery import Place
from bus.transport.rabbitmq.link import FRAME_MAX
from bus.transport.rabbitmq.mover import copy
from bus.transport.rabbitmq.topology import Names


PLACE = Place(Subscription(service="stock", handler="work", patterns=("order.#",)), Names())
INTO = ("stock.return", "aside.stock.work.migrating")
PROGRESS = {
    "tidegate-attempt": 3,
    "tidegate-first-failed-at": "2026-01-01T00:00:00+00:00",
    "tidegate-waits-since": "2026-01-01T00:00:00+00:00",
    "tidegate-routed": True,
    "tidegate-routing-key": "order.placed",
}


def received(exchange: str, key: str, headers: dict[str, Any], **properties: Any) -> Received:
    flags, encoded = copies.encode({"headers": headers, **properties})
    method = commands.Basic.Deliver("1", 1, False, exchange, key)
    raw = wire.U32.pack(method.index) + method.marshal()
    return Received(cast("Any", None), raw, bytes(12) + flags.to_bytes(2, "big") + encoded, b"body")


def moved(each: Received) -> tuple[Parcel, dict[str, Any]]:
    parcel = copy(each, INTO, PLACE, FRAME_MAX)
    return parcel, wire.properties(bytes(12) + parcel.flags.to_bytes(2, "big") + parcel.properties)


def progress(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties["headers"].items() if name in PROGRESS}


def test_what_came_by_an_exchange_of_ours_keeps_its_attempts() -> None:
    for exchange in ("stock.return", "delay.return"):
        parcel, properties = moved(received(exchange, "500.stock.work", PROGRESS))
        assert progress(properties) == PROGRESS
        assert (parcel.exchange, parcel.key, parcel.mandatory) == (*INTO, True)


def test_what_a_stranger_says_of_attempts_is_not_made_true() -> None:
    _, properties = moved(received("events", "order.made", PROGRESS))
    assert progress(properties) == {"tidegate-routed": True, "tidegate-routing-key": "order.made"}
    _, properties = moved(received("", "stock.work", PROGRESS))
    assert progress(properties) == {"tidegate-routing-key": "order.placed"}
    # further keys: the broker does not tell by which of them it came
    _, properties = moved(received("events", "order.made", {"CC": ["order.other"]}))
    assert progress(properties) == {"tidegate-routing-key": "order.made"}


def test_what_was_moved_once_is_moved_again_as_it_is() -> None:
    _, once = moved(received("events", "order.made", {"own": "1", "x-odd": "2"}, expiration="60", user_id="them"))
    _, again = moved(received("stock.return", INTO[1], once["headers"]))
    assert again["headers"] == once["headers"]
    assert once["headers"]["tidegate-original-expiration"] == "60"


def test_an_id_that_had_to_be_made_up_stays() -> None:
    parcel, properties = moved(received("events", "order.made", {}))
    again, _ = moved(received("stock.return", INTO[1], properties["headers"]))
    assert properties["headers"]["tidegate-id"] == parcel.id == again.id


def test_headers_that_fill_a_frame_go_to_the_dead_letters_as_a_worker_would_send_them() -> None:
    parcel, properties = moved(received("events", "order.made", {f"h{n}": "x" * 1000 for n in range(130)}))
    assert (parcel.exchange, parcel.key) == ("stock.dead", "stock.work")
    assert properties["headers"]["tidegate-failure-reason"] == "too-large"
