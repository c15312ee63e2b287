"""Requests of plain clients, answers of plain clients, and what is forged of either."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pika
import pytest

from bus import Event, Message, Queue, Reject, Service

from .answering import Asked, Quoted
from .stage import WITHIN, Log, Stage
from .test_requests import counted


class Answer(Event, type="fib.answer"):
    value: int


class Aside(Event, type="fib.aside"):
    value: int = 0


def fibonacci() -> Service:
    """The server of the RPC tutorial of RabbitMQ, as a handler."""
    service = Service("fibonacci")

    @service.on(Queue("rpc_queue"))
    async def fib(message: Message) -> tuple[Answer, Aside]:
        number = int(message.body)
        if number < 0:
            raise Reject("there is no such number")
        a, b = 0, 1
        for _ in range(number):
            a, b = b, a + b
        return Answer(value=a), Aside()

    return service


class FibonacciClient:
    """The client of that tutorial; `callback_queue` is where it waits."""

    def __init__(self, url: str, callback_queue: str | None = None) -> None:
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.queue_declare(queue="rpc_queue", durable=True)
        self.callback_queue = callback_queue or self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(queue=self.callback_queue, on_message_callback=self.on_response, auto_ack=True)
        self.response: tuple[Any, bytes] | None = None

    def on_response(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if self.correlation_id == properties.correlation_id:
            self.response = properties, body

    def call(self, number: int, within: float = WITHIN) -> tuple[Any, bytes] | None:
        self.response, self.correlation_id = None, str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key="rpc_queue",
            properties=pika.BasicProperties(reply_to=self.callback_queue, correlation_id=self.correlation_id),
            body=str(number),
        )
        until = time.monotonic() + within
        while self.response is None and time.monotonic() < until:
            self.connection.process_data_events(time_limit=0.1)
        return self.response


@pytest.mark.parametrize("callback_queue", [None, "amq.rabbitmq.reply-to"], ids=["a queue of its own", "direct"])
async def test_r1_the_client_of_the_rpc_tutorial_gets_what_the_handler_returned_first(
    rabbitmq: Stage, callback_queue: str | None
) -> None:
    client = await asyncio.to_thread(FibonacciClient, rabbitmq.settings.url, callback_queue)
    async with rabbitmq.hosting(fibonacci()):
        properties, body = await asyncio.to_thread(client.call, 30) or (None, b"")
        # of a failure it learns nothing, and the next one works
        assert await asyncio.to_thread(client.call, -1, 0.3) is None
        assert await asyncio.to_thread(client.call, 10) is not None
    await asyncio.to_thread(client.connection.close)
    assert json.loads(body) == {"value": 832040}
    assert (properties.type, properties.content_type) == ("fib.answer", "application/json")


def serve(url: str, answer: Callable[[bytes], bytes], times: int) -> None:
    """The server of the tutorial, on a queue that gets our events."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue="server", durable=True)
    channel.queue_bind("server", "events", "quote.asked")
    for method, properties, body in channel.consume("server", inactivity_timeout=WITHIN):
        told = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish(exchange="", routing_key=properties.reply_to, properties=told, body=answer(body))
        channel.basic_ack(delivery_tag=method.delivery_tag)
        times -= 1
        if not times:
            break
    connection.close()


async def test_r1_the_server_of_the_rpc_tutorial_answers_our_requests(rabbitmq: Stage) -> None:
    async with aio_pika_channel(rabbitmq.settings.url) as channel:
        await channel.declare_exchange("events", "topic", durable=True)
        queue = await channel.declare_queue("server", durable=True)
        await queue.bind("events", "quote.asked")

    def answer(body: bytes) -> bytes:
        return json.dumps({"number": json.loads(body)["number"] + 1, "by": "pika"}).encode()

    serving = asyncio.create_task(asyncio.to_thread(serve, rabbitmq.settings.url, answer, 2))
    for number in (1, 2):
        assert await rabbitmq.bus.request(Asked(number=number), Quoted, timeout=WITHIN) == Quoted(
            number=number + 1, by="pika"
        )
    await serving


@asynccontextmanager
async def aio_pika_channel(url: str) -> AsyncIterator[Any]:
    """Open a connection, and a channel on it."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


GARBAGE = [
    "keeper.keep",
    "rpc_queue",
    "amq.rabbitmq.reply-to.",
    "amq.rabbitmq.reply-to.garbage",
    "amq.rabbitmq.reply-to.g2dkABByZXBseUBsb2NhbGhvc3QAAAAAAAAAAAAAAAA=.AAAA",
    "amq.rabbitmq.reply-to." + "A" * 200,
    "amq.gen-nobody",
    "amq.topic",
    "ü" * 100,
    "\0",
]


async def test_r3_an_address_that_is_forged_or_garbage_gets_nothing_and_fails_nobody(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, quotes, seen = Service("keeper"), Service("quotes"), Log[int]()

    @keeper.on("never.comes")
    async def keep(message: Message) -> None: ...

    @quotes.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        seen.append(asked.number)
        if asked.number % 2:
            raise Reject("odd")
        return Quoted(number=asked.number)

    await rabbitmq.declare(keeper)
    async with rabbitmq.hosting(quotes):
        for number, address in enumerate(address for address in GARBAGE for _ in range(2)):
            body, headers = json.dumps({"number": number}).encode(), {"tidegate-wants": "quote.given"}
            await rabbitmq.raw("quote.asked", body, headers, reply_to=address, correlation_id="c")
        await seen.reaches(2 * len(GARBAGE))
        assert await rabbitmq.bus.request(Asked(number=100), Quoted, timeout=WITHIN) == Quoted(number=100)
        assert len(await rabbitmq.letters("quotes", len(GARBAGE))) == len(GARBAGE)
    assert await rabbitmq.ready("keeper.keep") == 0
    assert "connection lost" not in caplog.text
    assert "'keeper.keep' is no address that a broker made for replies" in caplog.text
    assert sorted(seen) == [*range(2 * len(GARBAGE)), 100]


FORGED = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA0ODI3Nzg0NAAAArUAAAAAUwjDbw==.jpL45FxjZ52xWoxPnDlCbg=="
"""As a broker makes them, but of a node that is not there: RabbitMQ 3.10 ends the connection over it."""


async def test_r3_an_address_over_which_a_broker_ends_the_connection_costs_replies_alone(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service, seen = Service("quotes"), Log[int]()

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        seen.append(asked.number)
        return Quoted(number=asked.number)

    async with rabbitmq.hosting(service):
        for number in range(1, 4):
            await rabbitmq.raw("quote.asked", b"{}", {}, reply_to=FORGED)
            # also what was on its way at that moment arrives
            assert (await rabbitmq.bus.request(Asked(number=number), Quoted, timeout=WITHIN)).number == number
    assert sorted(seen) == [0, 0, 0, 1, 2, 3]
    # once among others, once alone; then its node is known
    assert caplog.text.count("connection lost link=answer") == (2 if "541" in caplog.text else 0)
    assert "link=publish" not in caplog.text and "link=consume" not in caplog.text


async def test_r3_forged_replies_are_dropped_and_counted(rabbitmq: Stage) -> None:
    service, asked_at = Service("quotes"), Log[Message]()
    go = asyncio.Event()

    @service.on("quote.asked")
    async def quote(message: Message) -> Quoted:
        asked_at.append(message)
        await go.wait()
        return Quoted(number=1)

    async with rabbitmq.hosting(service):
        asking = asyncio.create_task(rabbitmq.bus.request(Asked(), Quoted, timeout=WITHIN))
        await asked_at.reaches(1)
        address, id = asked_at[0].reply_to, asked_at[0].id
        assert address is not None and address.startswith("amq.rabbitmq.reply-to.")
        forged: list[dict[str, Any]] = [
            {"correlation_id": "another", "type": "quote.given"},
            {"correlation_id": None},
            {"correlation_id": id, "headers": {"cloudEvents_type": "quote.other"}},
            {"correlation_id": id, "headers": {"cloudEvents_type": "tidegate.failed"}},
            {"correlation_id": id, "headers": {"cloudEvents_type": 5, "cloudEvents_id": {"a": [1]}}},
        ]
        async with aio_pika_channel(rabbitmq.settings.url) as channel:
            for properties in forged:
                message = aio_pika.Message(b"{}", **properties)
                await channel.default_exchange.publish(message, address, mandatory=False)
        await counted(rabbitmq, len(forged))
        assert not asking.done()
        go.set()
        assert await asking == Quoted(number=1)
