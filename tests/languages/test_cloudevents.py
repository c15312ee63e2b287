"""The CloudEvents SDK as an oracle: what it makes we read with the same attributes, and the other way round."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from bus import Message, Reject, Service, fixed
from tests.contract.stage import Log, Placed, Shipped, Stage

from .clients import bind, by_pika, found


AT = datetime(2026, 11, 27, 12, 30, 0, 123000, tzinfo=UTC)
ATTRIBUTES = {
    "id": "from the SDK",
    "source": "/theirs",
    "type": "order.placed",
    "time": AT,
    "subject": "order 3",
    "dataschema": "urn:tidegate:order.placed:1",
    "datacontenttype": "application/json",
    "correlationid": "corr",
    "causationid": "cause",
    "partitionkey": "ada",
    "tenant": "7",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
DATA = {"number": 3, "note": "ñ☃"}


def in_amqp_binary(event: BaseCloudEvent) -> dict[str, Any]:
    made = amqp.to_binary(event, JSONFormat())
    return _sent(made.application_data, made.application_properties, made.properties)


def in_amqp_binary_with_colons(event: BaseCloudEvent) -> dict[str, Any]:
    sent = in_amqp_binary(event)
    return sent | {"headers": {name.replace("_", ":", 1): value for name, value in sent["headers"].items()}}


def in_amqp_structured(event: BaseCloudEvent) -> dict[str, Any]:
    made = amqp.to_structured(event, JSONFormat())
    return _sent(made.application_data, made.application_properties, made.properties)


def in_rabbitmq_binary(event: BaseCloudEvent) -> dict[str, Any]:
    made = rabbitmq.to_binary(event, JSONFormat())
    return _sent(made.body, made.headers, {"content-type": made.content_type})


def in_rabbitmq_structured(event: BaseCloudEvent) -> dict[str, Any]:
    made = rabbitmq.to_structured(event, JSONFormat())
    return _sent(made.body, made.headers, {"content-type": made.content_type})


def in_structured_with_headers(event: BaseCloudEvent) -> dict[str, Any]:
    """The specification lets structured mode repeat its attributes as headers, for brokers that route by them."""
    headers = {**in_amqp_binary(event)["headers"], "cloudEvents_id": "another", "cloudEvents_tenant": "another"}
    return in_amqp_structured(event) | {"headers": headers}


def _sent(body: bytes, headers: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    content_type = properties.get("content-type")
    return {"body": body, "headers": headers} | ({"content_type": content_type} if content_type else {})


MODES = [
    in_amqp_binary,
    in_amqp_binary_with_colons,
    in_amqp_structured,
    in_rabbitmq_binary,
    in_rabbitmq_structured,
    in_structured_with_headers,
]


def listening(log: Log[Message], placed: Log[Placed]) -> Service:
    service = Service("listening")

    @service.on(Placed, retry=fixed(2, 0.1))
    async def take(order: Placed, message: Message) -> Shipped:
        log.append(message)
        placed.append(order)
        if len(log) == 1:
            raise ValueError
        if len(log) == 2:
            raise Reject("no")
        return Shipped(number=order.number)

    return service


@pytest.mark.parametrize("mode", MODES)
async def test_an_event_of_the_sdk_has_the_same_attributes_here_on_every_attempt(rabbitmq: Stage, mode: Any) -> None:
    log: Log[Message] = Log()
    placed: Log[Placed] = Log()
    sent = mode(CloudEvent(dict(ATTRIBUTES), DATA))
    url = rabbitmq.settings.url
    await asyncio.to_thread(bind, url, "answers", "order.shipped")
    async with rabbitmq.hosting(listening(log, placed)):
        await asyncio.to_thread(lambda: by_pika(url, "order.placed", **sent))
        (letter,) = await rabbitmq.letters("listening")
        await rabbitmq.transport.dead_letters.replay(letter)
        await log.reaches(3)
        async with asyncio.timeout(20):
            while not await rabbitmq.ready("answers"):
                await asyncio.sleep(0.05)
    message = log[0]
    assert log == [message] * 3
    assert placed == [Placed(number=3, note="ñ☃")] * 3
    assert (message.id, message.source, message.type) == ("from the SDK", "/theirs", "order.placed")
    assert (message.time, message.subject, message.version) == (AT, "order 3", 1)
    assert (message.correlation_id, message.causation_id, message.key) == ("corr", "cause", "ada")
    assert (message.content_type, json.loads(message.body)) == ("application/json", DATA)
    extensions = {name: ATTRIBUTES[name] for name in ("tenant", "traceparent")}
    assert (message.headers, message.problems, message.id_made_up) == (extensions, (), False)
    answer = await asyncio.to_thread(found, url, "answers")
    # the trace goes on, and so do the correlation and the cause
    assert answer.headers["traceparent"] == ATTRIBUTES["traceparent"]
    assert answer.headers["cloudEvents_causationid"] == "from the SDK"
    assert answer.headers["cloudEvents_correlationid"] == "corr"


async def test_an_event_of_ours_is_the_same_to_the_sdk(rabbitmq: Stage) -> None:
    url = rabbitmq.settings.url
    await asyncio.to_thread(bind, url, "theirs", "order.#")
    (id,) = await rabbitmq.bus.publish(Placed(number=3, note="ñ☃"), required=True)
    body, properties, headers = await asyncio.to_thread(found, url, "theirs")
    carried = amqp.AMQPMessage({"content-type": properties["content_type"]}, headers, body)
    event = amqp.from_amqp(carried, JSONFormat())
    assert event.get_data() == DATA
    attributes = dict(event.get_attributes())
    assert isinstance(attributes.pop("time"), datetime)
    assert attributes == {
        "id": id,
        "source": "/contract",
        "type": "order.placed",
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "dataschema": "urn:tidegate:order.placed:1",
        "correlationid": id,
    }
    again = JSONFormat().read(None, JSONFormat().write(event))
    assert (again.get_attributes(), again.get_data()) == (event.get_attributes(), event.get_data())


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/cloudevents", "Application/CloudEvents+JSON; charset=utf-8"]
)
async def test_structured_mode_is_read_by_any_name_that_it_goes_by(rabbitmq: Stage, content_type: str | None) -> None:
    log: Log[Message] = Log()
    service = Service("raw")

    @service.on("any.thing")
    async def take(message: Message) -> None:
        log.append(message)

    sent = in_amqp_structured(CloudEvent({"source": "/theirs", "type": "any.thing"}, DATA))
    sent["content_type"] = content_type
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(lambda: by_pika(rabbitmq.settings.url, "any.thing", **sent))
        await log.reaches(1)
    assert (log[0].source, json.loads(log[0].body), log[0].content_type) == ("/theirs", DATA, "application/json")


@pytest.mark.parametrize("mode", [in_amqp_structured, in_rabbitmq_structured])
@pytest.mark.parametrize(
    ("data", "kind", "body"),
    [
        (b"\xff\x00\x01", "application/octet-stream", b"\xff\x00\x01"),
        ("4711", "text/plain", b"4711"),
        (4711, "application/json", b"4711"),
        ("4711", "application/json", b'"4711"'),
        (None, None, b""),
        ({"n": 10**30, "f": 1.1}, "application/vnd.shop+json", b'{"n":1000000000000000000000000000000,"f":1.1}'),
    ],
    ids=["bytes", "text", "number", "string", "nothing", "large"],
)
async def test_data_of_any_kind_is_the_body_that_it_is_in_binary_mode(
    rabbitmq: Stage, mode: Any, data: Any, kind: str | None, body: bytes
) -> None:
    log: Log[Message] = Log()
    service = Service("raw")

    @service.on("any.thing")
    async def take(message: Message) -> None:
        log.append(message)

    attributes = {"source": "/theirs", "type": "any.thing"} | ({"datacontenttype": kind} if kind else {})
    sent = mode(CloudEvent(attributes, data))
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(lambda: by_pika(rabbitmq.settings.url, "any.thing", **sent))
        await log.reaches(1)
    assert (log[0].body, log[0].content_type) == (body, kind or "application/json")


ODD = {
    "a batch": ("application/cloudevents-batch+json", b'[{"specversion": "1.0"}]', "a batch is not read; publish each"),
    "another format": ("application/cloudevents+avro", b"\x00", "of the structured formats only JSON is read"),
    "no JSON": ("application/cloudevents+json", b"{", "structured mode: EOF while parsing"),
    "no object": ("application/cloudevents+json", b"[]", "structured mode: the body is no object with a type"),
    "no type": ("application/cloudevents+json", b'{"number": 3}', "structured mode: the body is no object with a type"),
    "bytes that are none": ("application/cloudevents+json", b'{"type": "t", "data_base64": "!"}', "structured mode:"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_what_cannot_be_read_in_structured_mode_is_refused_in_words(
    rabbitmq: Stage, odd: tuple[str, bytes, str]
) -> None:
    content_type, body, words = odd
    placed: Log[Placed] = Log()
    log: Log[Message] = Log()
    async with rabbitmq.hosting(listening(log, placed)):
        await asyncio.to_thread(lambda: by_pika(rabbitmq.settings.url, "order.placed", body, content_type=content_type))
        (letter,) = await rabbitmq.letters("listening")
    assert (letter.failure.reason, letter.message.body, placed) == ("undecodable", body, [])
    assert words in letter.failure.error


async def test_attributes_of_other_kinds_than_text_are_read(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("raw")

    @service.on("any.thing")
    async def take(message: Message) -> None:
        log.append(message)

    times = {"cloudEvents_time": AT.replace(microsecond=0), "cloudEvents_expirytime": 4_102_444_800_000}
    headers = {"cloudEvents_id": b"of bytes", "cloudEvents_partitionkey": 7, "tenant": b"\xc3\xb1", "raw": b"\xff"}
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(lambda: by_pika(rabbitmq.settings.url, "any.thing", headers={**headers, **times}))
        await log.reaches(1)
    message = log[0]
    assert (message.id, message.key, message.headers) == ("of bytes", "7", {"tenant": "ñ"})
    assert (message.time, message.expires) == (AT.replace(microsecond=0), datetime(2100, 1, 1, tzinfo=UTC))


async def test_an_attribute_of_theirs_is_no_header_of_the_same_name(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("raw")

    @service.on("any.thing")
    async def take(message: Message) -> None:
        log.append(message)

    headers = {"ce-tenant": "theirs", "tenant": "plain", "cloudEvents_region": 7, "ce-no-attribute": "x"}
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(lambda: by_pika(rabbitmq.settings.url, "any.thing", headers=headers))
        await log.reaches(1)
    assert log[0].headers == {"tenant": "plain", "region": "7"}
