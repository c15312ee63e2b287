"""What bad input gets: delivered or dead-lettered, never a crash, a loop or a lost message."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import aio_pika
import pytest

from bus import ConfigurationError, Event, Fate, Letter, Message, Queue, Service, immediate
from bus.message import Outgoing
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Parcel
from bus.transport.rabbitmq.link import Link

from .stage import Log, Placed, Stage


class Newer(Event, type="order.newer", version=2):
    number: int


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "Invalid JSON"),
        (b"not json", "Invalid JSON"),
        (b"\xff\xfe\x00", "Invalid JSON"),
        (b"[]", "body"),
        (b'{"number": "x", "note": 5}', "number"),
        (b"[" * 100_000, "Invalid JSON"),
    ],
    ids=["empty", "text", "bytes", "list", "fields", "deep"],
)
async def test_a_body_that_is_no_event_is_dead_lettered_at_once_with_its_bytes(
    stage: Stage, body: bytes, told: str
) -> None:
    ran: Log[int] = Log()
    service = Service("typed")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        ran.append(placed.number)

    async with stage.hosting(service):
        await stage.raw("order.placed", body)
        (letter,) = await stage.letters("typed")
        await stage.bus.publish(Placed(number=3))
        await ran.reaches(1)
    assert (letter.failure.reason, letter.failure.attempts, letter.message.body) == ("undecodable", 0, body)
    assert told in letter.failure.error
    assert ran == [3]


async def test_every_field_error_is_listed(stage: Stage) -> None:
    service = Service("typed")

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    async with stage.hosting(service):
        await stage.raw("order.placed", b'{"number": "x", "note": 5}')
        (letter,) = await stage.letters("typed")
    assert "number:" in letter.failure.error
    assert "note:" in letter.failure.error


async def test_a_body_over_the_limit_is_dead_lettered(stage: Stage) -> None:
    service = Service("typed")

    @service.on("order.placed")
    async def work(message: Message) -> None: ...

    async with stage.hosting(service, max_message_bytes=1000):
        await stage.raw("order.placed", b"x" * 1001)
        (letter,) = await stage.letters("typed")
    assert (letter.failure.reason, len(letter.message.body)) == ("too-large", 1001)


async def test_f9_an_unknown_type_or_version_is_looked_at_again_before_it_is_given_up(stage: Stage) -> None:
    service = Service("typed")

    @service.on(Newer)
    async def work(newer: Newer) -> None: ...

    message = stage.bus.message(Newer(number=1))
    fields = {name: getattr(message, name) for name in Message.__dataclass_fields__}
    async with stage.hosting(service, deploy_grace=0.01):
        await stage.transport.publish([Outgoing(Message(**fields | {"version": 3}))])
        await stage.transport.publish([Outgoing(Message(**fields | {"type": "order.other"}), address="typed.work")])
        letters = await stage.letters("typed", 2)
    assert sorted(letter.failure.reason for letter in letters) == ["unknown-type", "unknown-version"]
    assert all(letter.failure.attempts == 0 for letter in letters)
    for letter in letters:
        assert letter.failure.last_failed_at - letter.failure.first_failed_at >= timedelta(seconds=9.9)


async def test_a_message_without_id_or_headers_is_delivered(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("open")

    @service.on("order.#", retry=immediate(2))
    async def work(message: Message) -> None:
        log.append(message)
        if len(log) == 1:
            raise ValueError

    async with rabbitmq.hosting(service):
        # by hand: the client would make up an id
        (address,) = addresses(rabbitmq.settings)
        link = await Link.connect(address)
        channel = await link.channel(confirm=True)
        assert await channel.publish([Parcel("", "events", "order.placed", 0, b"", b"hello")]).future == [Fate.STORED]
        await link.aclose()
        await log.reaches(2)
    first, second = log
    assert (first.type, first.body, first.id_made_up) == ("order.placed", b"hello", True)
    assert second.id == first.id


def deep(levels: int) -> dict[str, Any]:
    return {"deeper": deep(levels - 1)} if levels else {}


HOSTILE: dict[str, dict[str, Any]] = {
    "tables a hundred deep": {"headers": deep(100)},
    "CC and BCC": {"headers": {"CC": ["typed.other"], "BCC": ["typed.other"]}},
    "foreign x-death": {"headers": {"x-death": [{"queue": "q", "reason": "expired", "count": 9, "exchange": ""}]}},
    "nested tables": {"headers": {"a": {"b": {"c": [1, {"d": None}]}}}},
    "names that are not ASCII": {"headers": {"tenañt☃": "snow"}},
    "bytes and floats": {"headers": {"raw": bytearray(b"\xff\x00"), "pi": 3.5, "no": None, "yes": True}},
    "a time that is none": {"headers": {"cloudEvents_time": "yesterday", "cloudEvents_expirytime": "soon"}},
    "attributes of other kinds": {"headers": {"cloudEvents_id": 7, "cloudEvents_type": True, "ce-source": 1.5}},
    "forged progress": {"headers": {"tidegate-attempt": "many", "tidegate-hops": "x", "tidegate-d3": True}},
    "expiration and user": {"expiration": 30, "user_id": "guest"},
    "headers of 40 kB": {"headers": {f"h{n}": "x" * 600 for n in range(66)}},
    "control characters": {"headers": {"line": "a\nb\x1b[31m"}, "message_id": "id\r\nforged"},
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_headers_and_properties_are_delivered_retried_and_dead_lettered(
    rabbitmq: Stage, hostile: dict[str, Any]
) -> None:
    runs: Log[Message] = Log()
    strays: Log[Message] = Log()
    service = Service("typed")

    @service.on("order.placed", retry=immediate(2))
    async def work(message: Message) -> None:
        runs.append(message)
        raise ValueError(message.headers.get("line", "no"))

    @service.on("nothing", name="other")
    async def other(message: Message) -> None:
        strays.append(message)

    async with rabbitmq.hosting(service):
        await rabbitmq.raw("order.placed", b"{}", **hostile)
        (letter,) = await rabbitmq.letters("typed")
    assert len(runs) == 2
    assert letter.message.body == b"{}"
    assert letter.failure.attempts == 2
    # the broker itself obeys CC as it comes in, where it names a queue; no copy of ours goes there again
    assert len(strays) <= (1 if hostile is HOSTILE["CC and BCC"] else 0)


@pytest.mark.parametrize("size", [60_000, 120_000])
async def test_headers_that_leave_no_room_for_a_record_are_kept_whole_and_can_be_replayed(
    rabbitmq: Stage, size: int
) -> None:
    ran: Log[Message] = Log()
    service = Service("typed")

    @service.on("order.placed")
    async def work(message: Message) -> None:
        ran.append(message)

    headers = {f"h{number}": "x" * 1000 for number in range(size // 1000)} | {"nested": {"a": [1]}}
    async with rabbitmq.hosting(service):
        await rabbitmq.raw("order.placed", b"body", headers, message_id="big")
        (letter,) = await rabbitmq.letters("typed")
        assert (letter.failure.reason, letter.failure.attempts) == ("too-large", 0)
        assert (letter.message.id, letter.message.type, letter.message.body) == ("big", "order.placed", b"body")
        assert len(letter.message.headers) == size // 1000
        await rabbitmq.transport.dead_letters.replay(letter)
        (again,) = await wait_for_another(rabbitmq, letter)
    assert (again.failed_again, again.message.headers) == (1, letter.message.headers)
    assert ran == []


async def wait_for_another(stage: Stage, letter: Letter) -> list[Letter]:
    async with asyncio.timeout(20):
        while True:
            found = await stage.letters(letter.service)
            if found[0].id != letter.id:
                return found


async def test_a_structured_event_of_another_product_is_read(rabbitmq: Stage) -> None:
    log: Log[Placed] = Log()
    service = Service("open")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed)

    body = b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "order.placed", "data": {"number": 5}}'
    async with rabbitmq.hosting(service):
        await rabbitmq.raw("order.placed", body, content_type="application/cloudevents+json; charset=utf-8")
        await rabbitmq.raw("order.placed", body, content_type="text/plain")
        await log.reaches(2)
    assert log == [Placed(number=5), Placed(number=5)]


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-"])
async def test_every_prefix_of_the_attributes_is_read(rabbitmq: Stage, prefix: str) -> None:
    log: Log[Message] = Log()
    service = Service("open")

    @service.on("routing.key")
    async def work(message: Message) -> None:
        log.append(message)

    headers = {f"{prefix}id": "their-id", f"{prefix}type": "their.type", f"{prefix}source": "/theirs"}
    async with rabbitmq.hosting(service):
        await rabbitmq.raw("routing.key", b"{}", headers)
        await log.reaches(1)
    assert (log[0].id, log[0].type, log[0].source) == ("their-id", "their.type", "/theirs")


async def test_a_foreign_queue_is_a_source_and_is_waited_for(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("open")

    @service.on(Queue("inventory_updates"), retry=immediate(2))
    async def work(message: Message) -> None:
        log.append(message)
        if len(log) == 1:
            raise ValueError

    async with (
        rabbitmq.hosting(service),
        await aio_pika.connect(rabbitmq.settings.url) as connection,
        connection.channel() as channel,
    ):
        await channel.declare_queue("inventory_updates")
        await channel.default_exchange.publish(aio_pika.Message(b"4711"), "inventory_updates")
        await log.reaches(2)
    assert [message.body for message in log] == [b"4711", b"4711"]
    assert log[0].type == "inventory_updates"


async def test_headers_that_would_change_routing_never_leave(stage: Stage) -> None:
    for name in ("CC", "bcc", "x-death", "tidegate-attempt", "cloudEvents_id"):
        with pytest.raises(ConfigurationError, match=name):
            await stage.bus.publish(Placed(), headers={name: "x"})
