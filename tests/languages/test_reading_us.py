"""Plain clients bind queues of their own to the events, and find everything where such clients look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kombu
import pytest

from bus import Event, Message, Service
from tests.contract.stage import Log, Placed, Shipped, Stage

from . import node
from .clients import EVERYTHING, bind, pika_channel


Seen = dict[str, Any]

CONSUME = """
const amqp = require("amqplib");

(async () => {
  const connection = await amqp.connect(process.env.RABBITMQ_URL);
  const channel = await connection.createChannel();
  const message = await channel.get("theirs");
  const {contentType, contentEncoding, messageId, type, appId, correlationId, timestamp, deliveryMode, headers} =
    message.properties;
  console.log(JSON.stringify({
    body: JSON.parse(message.content), key: message.fields.routingKey, contentType, contentEncoding, messageId, type,
    appId, correlationId, timestamp, deliveryMode, headers,
  }));
  channel.ack(message);
  await channel.close();
  await connection.close();
})();
"""


def read_by_pika(url: str, folder: Path) -> Seen:
    with pika_channel(url) as channel:
        method, properties, body = channel.basic_get("theirs")
        channel.basic_ack(method.delivery_tag)
    told = {name: getattr(properties, name) for name in ("content_type", "content_encoding", "message_id", "type")}
    told |= {name: getattr(properties, name) for name in ("app_id", "correlation_id", "timestamp", "delivery_mode")}
    return {"body": json.loads(body), "key": method.routing_key, "headers": properties.headers, **told}


def read_by_kombu(url: str, folder: Path) -> Seen:
    seen: list[Seen] = []

    def take(body: Any, message: kombu.Message) -> None:
        told = {name: message.properties.get(name) for name in ("message_id", "type", "app_id", "correlation_id")}
        told |= {name: message.properties.get(name) for name in ("timestamp", "delivery_mode")}
        told |= {"content_type": message.content_type, "content_encoding": message.content_encoding}
        key = (message.delivery_info or {})["routing_key"]
        seen.append({"body": body, "key": key, "headers": message.headers, **told})
        message.ack()

    queue = kombu.Queue("theirs", kombu.Exchange("events", "topic", durable=True), "order.#", durable=True)
    with kombu.Connection(url) as connection, connection.Consumer(queue, callbacks=[take], accept=["json"]):
        connection.drain_events(timeout=20)
    return seen[0]


def read_by_amqplib(url: str, folder: Path) -> Seen:
    script = folder / "consume.js"
    script.write_text(CONSUME)
    done = node.run(script, url)
    assert done.returncode == 0, done.stderr
    names = {"contentType": "content_type", "contentEncoding": "content_encoding", "messageId": "message_id"}
    names |= {"appId": "app_id", "correlationId": "correlation_id", "deliveryMode": "delivery_mode"}
    return {names.get(name, name): value for name, value in json.loads(done.stdout).items()}


READ: dict[str, Callable[[str, Path], Seen]] = {
    "pika": read_by_pika,
    "kombu": read_by_kombu,
    "amqplib": read_by_amqplib,
}


@pytest.mark.parametrize("client", READ)
async def test_an_event_of_ours_says_everything_where_the_client_looks(
    rabbitmq: Stage, client: str, tmp_path: Path
) -> None:
    url = rabbitmq.settings.url
    await asyncio.to_thread(bind, url, "theirs", "order.#")
    placed = Placed(number=3, note="ñ☃")
    (id,) = await rabbitmq.bus.publish(placed, headers={"tenant": "7"}, required=True)
    seen = await asyncio.to_thread(READ[client], url, tmp_path)
    assert seen["body"] == {"number": 3, "note": "ñ☃"}
    assert (seen["key"], seen["type"], seen["content_type"]) == ("order.placed", "order.placed", "application/json")
    assert (seen["message_id"], seen["correlation_id"], seen["app_id"]) == (id, id, "/contract")
    assert (seen["delivery_mode"], seen.get("content_encoding")) == (2, None)
    headers = seen["headers"]
    time = datetime.fromisoformat(headers.pop("cloudEvents_time"))
    stamp = seen["timestamp"]
    assert (stamp.replace(tzinfo=UTC).timestamp() if isinstance(stamp, datetime) else stamp) == int(time.timestamp())
    assert headers == {
        "cloudEvents_id": id,
        "cloudEvents_source": "/contract",
        "cloudEvents_specversion": "1.0",
        "cloudEvents_type": "order.placed",
        "cloudEvents_dataschema": "urn:tidegate:order.placed:1",
        "cloudEvents_correlationid": id,
        "tenant": "7",
    }
    assert await rabbitmq.ready("theirs") == 0


@pytest.mark.parametrize("client", READ)
async def test_what_a_handler_answers_to_a_plain_message_tells_its_cause(
    rabbitmq: Stage, client: str, tmp_path: Path
) -> None:
    """And where a message said a correlation id, as plain clients do, that goes on."""
    url, service = rabbitmq.settings.url, Service("shipping")
    seen: Log[Message] = Log()

    @service.on(Placed)
    async def ship(order: Placed, message: Message) -> Event:
        seen.append(message)
        return Shipped(number=order.number)

    await asyncio.to_thread(bind, url, "theirs", "order.shipped")
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(EVERYTHING[client], url, tmp_path)
        await seen.reaches(1)
    answer = await asyncio.to_thread(READ[client], url, tmp_path)
    assert (answer["body"], answer["correlation_id"]) == ({"number": 3}, "theirs")
    assert answer["headers"]["cloudEvents_causationid"] == f"from {client}"
    assert (answer["app_id"], answer["headers"]["tidegate-hops"]) == ("/contract/shipping", 1)
