"""What plain clients publish reaches our handlers; its retries and replays are what it was."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bus import Context, Message, Reject, Service, fixed
from tests.contract.stage import Log, Placed, Stage

from .clients import EVERYTHING, Found, bind, by_amqplib, by_kombu, by_pika, found


def bare_by_pika(url: str, folder: Path) -> None:
    by_pika(url, "order.placed", b'{"number": 3}')


def bare_by_kombu(url: str, folder: Path) -> None:
    by_kombu(url, "order.placed", {"number": 3})


def bare_by_amqplib(url: str, folder: Path) -> None:
    by_amqplib(url, folder, "order.placed", '{"number": 3}')


BARE = {"pika": bare_by_pika, "kombu": bare_by_kombu, "amqplib": bare_by_amqplib}


def taking(placed: Log[Placed], messages: Log[Message], *failures: Exception) -> Service:
    service, left = Service("taking"), list(failures)

    @service.on(Placed, retry=fixed(3, 0.1))
    async def take(order: Placed, message: Message, context: Context) -> None:
        placed.append(order)
        messages.append(message)
        if left:
            raise left.pop(0)

    return service


@pytest.mark.parametrize("client", BARE)
async def test_a_bare_body_reaches_a_typed_handler(rabbitmq: Stage, client: str, tmp_path: Path) -> None:
    placed: Log[Placed] = Log()
    messages: Log[Message] = Log()
    async with rabbitmq.hosting(taking(placed, messages, ValueError())):
        await asyncio.to_thread(BARE[client], rabbitmq.settings.url, tmp_path)
        await placed.reaches(2)
    assert placed == [Placed(number=3)] * 2
    first, second = messages
    assert (first.type, first.id_made_up, first.version, first.source) == ("order.placed", True, None, "")
    assert (second.id, second.body, second.time) == (first.id, first.body, datetime.fromtimestamp(0, UTC))


@pytest.mark.parametrize("client", EVERYTHING)
async def test_what_a_client_says_of_a_message_reaches_the_handler_on_every_attempt(
    rabbitmq: Stage, client: str, tmp_path: Path
) -> None:
    placed: Log[Placed] = Log()
    messages: Log[Message] = Log()
    async with rabbitmq.hosting(taking(placed, messages, ValueError(), Reject("no"))):
        await asyncio.to_thread(EVERYTHING[client], rabbitmq.settings.url, tmp_path)
        (letter,) = await rabbitmq.letters("taking")
        await rabbitmq.transport.dead_letters.replay(letter)
        await messages.reaches(3)
    first, retried, replayed = messages
    assert placed == [Placed(number=3)] * 3
    assert (first.id, first.type, first.correlation_id) == (f"from {client}", "order.placed", "theirs")
    assert (first.source, first.key, first.reply_to, first.id_made_up) == ("shop", None, None, False)
    assert first.time.replace(microsecond=0) == datetime.fromtimestamp(1_795_782_600, UTC)
    assert first.content_type.startswith("application/json")
    assert {name: first.headers[name] for name in ("tenant", "big", "pi")} == {
        "tenant": "7",
        "big": str(1 << 40),
        "pi": "3.5",
    }
    assert first == retried == replayed == letter.message


@pytest.mark.parametrize("client", EVERYTHING)
async def test_the_copies_of_a_message_have_everything_that_its_client_sent(
    rabbitmq: Stage, client: str, tmp_path: Path
) -> None:
    url, service = rabbitmq.settings.url, Service("taking")

    @service.on(Placed, retry=fixed(2, 600))
    async def take(order: Placed) -> None:
        raise ValueError

    @service.on(Placed)
    async def refuse(order: Placed) -> None:
        raise Reject("no")

    await asyncio.to_thread(bind, url, "plain", "order.#")
    async with rabbitmq.hosting(service):
        await asyncio.to_thread(EVERYTHING[client], url, tmp_path)
        (letter,) = await rabbitmq.letters("taking")
        await waits(rabbitmq, "taking.retry.600000")
    await rabbitmq.transport.dead_letters.replay(letter)
    original = await asyncio.to_thread(found, url, "plain")
    assert await rabbitmq.ready("plain") == 0, "a copy came to a queue that is bound to the events"
    for queue in ("taking.retry.600000", "taking.refuse"):
        kept(original, await asyncio.to_thread(found, url, queue))


async def waits(stage: Stage, queue: str) -> None:
    async with asyncio.timeout(20):
        while not await stage.ready(queue):
            await asyncio.sleep(0.05)


def kept(original: Found, copy: Found) -> None:
    """A copy is the original; what would change what the broker does with it stands among its headers."""
    assert copy.body == original.body
    expected: dict[str, Any] = dict(original.headers)
    moved: dict[str, Any] = {name: original.properties.get(name) for name in ("expiration", "user_id")}
    moved |= {name: expected.pop(name) for name in ("x-tenant", "CC") if name in expected}
    moved |= {name: [expected.pop(name)] for name, value in original.headers.items() if isinstance(value, Decimal)}
    expected |= {f"tidegate-original-{name}": value for name, value in moved.items() if value is not None}
    ours = ("tidegate-attempt", "tidegate-first-", "tidegate-rout", "tidegate-letter-replay", "x-delivery-count")
    assert {name: value for name, value in copy.headers.items() if not name.startswith(ours)} == expected
    assert copy.headers["tidegate-routing-key"] == "order.placed"
    changed = {name: value for name, value in original.properties.items() if name not in moved}
    assert copy.properties == {**changed, "delivery_mode": 2}


async def test_a_compressed_body_is_a_dead_letter_that_says_it_is_no_json(rabbitmq: Stage) -> None:
    placed: Log[Placed] = Log()
    async with rabbitmq.hosting(taking(placed, Log())):
        await asyncio.to_thread(
            by_kombu, rabbitmq.settings.url, "order.placed", {"number": 3}, compression="application/x-gzip"
        )
        (letter,) = await rabbitmq.letters("taking")
    assert (letter.failure.reason, placed) == ("undecodable", [])
    assert letter.message.headers["compression"] == "application/x-gzip"
    assert "Invalid JSON" in letter.failure.error
