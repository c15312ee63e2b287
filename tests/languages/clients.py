"""Other people's clients, as their documentation has them: each publishes what it can say, and reads what it finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import kombu
import pika
from pika.adapters.blocking_connection import BlockingChannel

from . import node


EVENTS = "events"
AT = datetime(2026, 11, 27, 12, 30, tzinfo=UTC)


class Found(NamedTuple):
    """What a plain client finds in a queue."""

    body: bytes
    properties: dict[str, Any]
    headers: dict[str, Any]


@contextmanager
def pika_channel(url: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def bind(url: str, queue: str, pattern: str) -> None:
    """Declare a durable queue of somebody's own, and bind it to the events."""
    with pika_channel(url) as channel:
        channel.exchange_declare(EVENTS, "topic", durable=True)
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, EVENTS, pattern)


def found(url: str, queue: str) -> Found:
    """Take one message out of a queue, as kombu sees it: pika rounds numbers."""
    with kombu.Connection(url) as connection, connection.channel() as channel:
        message = channel.basic_get(queue, no_ack=True)
        assert message is not None, f"{queue} is empty"
        properties = dict(message.properties)
        body = message.body.encode() if isinstance(message.body, str) else message.body
        return Found(body, properties, properties.pop("application_headers", {}))


def by_pika(url: str, key: str, body: bytes = b"{}", **properties: Any) -> None:
    with pika_channel(url) as channel:
        channel.basic_publish(EVENTS, key, body, pika.BasicProperties(**properties) if properties else None)


def by_kombu(url: str, key: str, body: Any, **options: Any) -> None:
    exchange = kombu.Exchange(EVENTS, "topic", durable=True)
    with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer(exchange=exchange).publish(body, routing_key=key, declare=[exchange], **options)


PUBLISH = """
const amqp = require("amqplib");

(async () => {
  const connection = await amqp.connect(process.env.RABBITMQ_URL);
  const channel = await connection.createConfirmChannel();
  const [key, body, options] = [%s, %s, %s];
  channel.publish("events", key, Buffer.from(body), options);
  await channel.waitForConfirms();
  await connection.close();
})();
"""


def by_amqplib(url: str, folder: Path, key: str, body: str, options: str = "{}") -> None:
    """Publish by amqplib; the options are JavaScript."""
    script = folder / "publish.js"
    script.write_text(PUBLISH % (json.dumps(key), json.dumps(body), options))
    done = node.run(script, url)
    assert done.returncode == 0, done.stderr


NESTED = {"tenant": "7", "deep": {"list": [1, None, {"a": "ñ☃"}], "yes": True}, "none": None, "big": 1 << 40, "pi": 3.5}


def everything_by_pika(url: str, folder: Path) -> None:
    # of floats pika knows nothing
    headers = {**NESTED, "pi": "3.5", "raw": b"\xff\x00", "at": AT, "price": Decimal("4.20"), "x-tenant": "8"}
    by_pika(
        url,
        "order.placed",
        b'{"number": 3}',
        headers=headers,
        content_type="application/json; charset=utf-8",
        content_encoding="utf-8",
        delivery_mode=1,
        priority=3,
        correlation_id="theirs",
        expiration="60000",
        message_id="from pika",
        timestamp=1_795_782_600,
        type="a type of theirs",
        user_id="guest",
        app_id="shop",
    )


def everything_by_kombu(url: str, folder: Path) -> None:
    """As Celery does: nested arrays, a priority, an expiry."""
    headers = {"lang": "py", "timelimit": [None, None], "stamps": {}, "retries": 0, "shadow": None, "group_index": None}
    headers |= {"at": AT, "raw": b"\xff\x00", **NESTED}
    by_kombu(
        url,
        "order.placed",
        {"number": 3},
        headers=headers,
        priority=3,
        expiration=60,
        correlation_id="theirs",
        message_id="from kombu",
        timestamp=1_795_782_600,
        app_id="shop",
    )


def everything_by_amqplib(url: str, folder: Path) -> None:
    """Numbers of every size, milliseconds for a timestamp, a Buffer among the headers."""
    options = """{
      headers: {
        tenant: "7", deep: {list: [1, null, {a: "ñ☃"}], yes: true}, none: null, byte: -7, short: 700, int: 70000,
        big: 2 ** 40, pi: 3.5, raw: Buffer.from([255, 0]), at: {"!": "timestamp", value: 1795782600},
        price: {"!": "decimal", value: {digits: 420, places: 2}}, float: {"!": "float", value: 0.5}, CC: [],
      },
      contentType: "application/json", contentEncoding: "utf-8", persistent: true, priority: 3, mandatory: true,
      correlationId: "theirs", expiration: 60000, messageId: "from amqplib", timestamp: 1795782600123,
      type: "a type of theirs", appId: "shop",
    }"""
    by_amqplib(url, folder, "order.placed", '{"number": 3}', options)


EVERYTHING = {"pika": everything_by_pika, "kombu": everything_by_kombu, "amqplib": everything_by_amqplib}
