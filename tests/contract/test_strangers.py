"""What strangers send, one trick each: what it would break, and does not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from bus import Context, Fate, Letter, Message, Reject, Service, fixed
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Parcel
from bus.transport.rabbitmq.link import Link
from tests.broker.fixtures import Shared
from tests.hostile.fields import array, long, string, table, whole
from tests.hostile.forgeries import Bulk
from tests.hostile.messages import assembled

from .outages import removed
from .stage import Log, Placed, Shipped, Stage


Fields = Sequence[tuple[bytes, bytes]]
DECIMAL = b"D" + struct.pack(">BI", 2, 420)


async def send(
    stage: Stage, headers: Fields = (), body: bytes = b"{}", key: str = "order.placed", queue: str = "", **given: bytes
) -> None:
    """Publish as a stranger does, whatever that is: to the events, or into one queue."""
    made = assembled([], {**given, "headers": list(headers)}, body)
    (address,) = addresses(stage.settings)
    link = await Link.connect(address)
    channel = await link.channel(confirm=True)
    parcel = Parcel("", "" if queue else "events", queue or key, made.flags, made.properties, body, mandatory=True)
    assert await channel.publish([parcel]).future == [Fate.STORED], channel.error
    await link.aclose()


def rejecting(log: Log[Message] | None = None) -> Service:
    service = Service("wary")

    @service.on("order.placed")
    async def work(message: Message) -> None:
        if log is not None:
            log.append(message)
        raise Reject("no")

    return service


def twice(log: Log[Message]) -> Service:
    service = Service("wary")

    @service.on("order.placed", retry=fixed(2, 0.1))
    async def work(message: Message, context: Context) -> None:
        log.append(message)
        if context.attempt == 1:
            raise ValueError

    return service


FORGED = [
    [(b"tidegate-letter-mark", string("discarded")), (b"tidegate-letter-id", string("0-0"))],
    [(b"tidegate-letter-mark", string("replayed")), (b"tidegate-letter-id", string("0-0"))],
    [
        (b"tidegate-letter-mark", string("claim")),
        (b"tidegate-letter-id", string("0-0")),
        (b"tidegate-letter-at", string("2001-01-01")),
    ],
    [(b"tidegate-wrapped", whole(3))],
    [(b"tidegate-wrapped", string("AAAA"))],
    [(b"tidegate-nested", string("{")), (b"a", array(whole(1)))],
    [(b"tidegate-failure-handler", string("spy")), (b"tidegate-failure-attempts", string("9" * 5000))],
    [(b"tidegate-failure-last-failed-at", string("2001-01-01")), (b"tidegate-first-failed-at", string("2001-01-01"))],
    [(b"x-stream-offset", whole(1 << 60))],
    [(b"x-stream-offset", whole(1 << 60)), (b"x-stream-offset", string("last"))],
    [(b"tidegate-id", table([])), (b"tidegate-routing-key", whole(7))],
]


@pytest.mark.parametrize("expired", [False, True], ids=["by the worker", "by the broker"])
async def test_f4_forged_marks_and_records_change_no_letter(rabbitmq: Stage, expired: bool) -> None:
    service = rejecting()
    async with rabbitmq.hosting(service):
        await send(rabbitmq, body=b"honest", message_id=b"honest")
        await rabbitmq.letters("wary")
        if not expired:
            for number, forged in enumerate(FORGED):
                await send(rabbitmq, forged, b"forged", message_id=b"%d" % number)
            found = await rabbitmq.letters("wary", 1 + len(FORGED))
    if expired:
        # nobody consumes, so that the broker itself gives them up
        for number, forged in enumerate(FORGED):
            await send(rabbitmq, forged, b"forged", message_id=b"%d" % number, expiration=b"1")
        found = await rabbitmq.letters("wary", 1 + len(FORGED))
    assert [letter.message.body for letter in found] == [b"honest"] + [b"forged"] * len(FORGED)
    assert {(letter.handler, letter.failed_again) for letter in found} == {("work", 0)}
    assert {letter.failure.reason for letter in found[1:]} == {"expired" if expired else "rejected"}
    for letter in found:
        assert letter.failure.last_failed_at >= letter.failure.first_failed_at
        await rabbitmq.transport.dead_letters.replay(letter)
    assert await rabbitmq.letters("wary", 0) == []
    again: Log[Message] = Log()
    async with rabbitmq.hosting(rejecting(again)):
        await again.reaches(len(found))
    assert sorted(message.body for message in again) == sorted(letter.message.body for letter in found)


async def test_f4_messages_that_share_an_id_are_letters_of_their_own(rabbitmq: Stage) -> None:
    await rabbitmq.declare(rejecting())
    for number in range(3):
        await send(rabbitmq, body=b"%d" % number, message_id=b"always the same", expiration=b"1")
    letters = await rabbitmq.letters("wary", 3)
    assert [letter.message.body for letter in letters] == [b"0", b"1", b"2"]


POISON: dict[str, tuple[Fields, dict[str, bytes]]] = {
    "a decimal": ([(b"price", DECIMAL)], {}),
    "a decimal in a table": ([(b"prices", table([(b"tea", DECIMAL), (b"raw", b"x" + long(b"\xff"))]))], {}),
    "a body that claims to be AMQP 1.0": ([], {"type": b"amqp-1.0"}),
    "sections of AMQP 1.0": ([(b"x-amqp-1.0-properties", string("no")), (b"x-amqp-1.0-app-properties", b"V")], {}),
    "the end of time": ([(b"at", b"T" + b"\xff" * 8)], {"timestamp": b"\xff" * 8}),
    "a name that is too long to be moved": ([(b"x-" + b"y" * 253, string("z"))], {}),
    "thousands of x-headers": (Bulk("moved", 6_000).fields(), {}),
    "an address for the answer that is as long as can be": ([], {"reply_to": b"z" * 255}),
    "an id of 120 kB": ([(b"cloudEvents_id", string("i" * 120_000))], {}),
    "a made id of 120 kB": ([(b"tidegate-id", string("i" * 120_000))], {}),
    "a routing key of 120 kB": ([(b"tidegate-routing-key", string("i" * 120_000))], {}),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_f4_what_a_stream_cannot_keep_is_wrapped_and_the_next_letter_is_read(
    rabbitmq: Stage, poison: tuple[Fields, dict[str, bytes]]
) -> None:
    headers, given = poison
    async with rabbitmq.hosting(rejecting()):
        await send(rabbitmq, headers, b"odd", **given)
        await rabbitmq.letters("wary")
        await send(rabbitmq, body=b"plain")
        odd, plain = await rabbitmq.letters("wary", 2)
        assert (odd.message.body, plain.message.body) == (b"odd", b"plain")
        await rabbitmq.transport.dead_letters.replay(odd)
        again = await replaced(rabbitmq, odd)
    assert again.message.body == b"odd"
    assert (again.message.reply_to or "").encode() == given.get("reply_to", b"")
    assert (again.message.id, again.message.headers) == (odd.message.id, odd.message.headers)


async def replaced(stage: Stage, letter: Letter) -> Letter:
    """Return the letter that comes instead of a replayed one."""
    while True:
        found = await stage.letters(letter.service, 2)
        if letter.id not in {open.id for open in found}:
            return found[-1]


MANY = [(b"x-%d" % number, b"V") for number in range(200)]
UNSTREAMED: dict[str, Fields] = {
    "a decimal": [(b"price", DECIMAL)],
    "a decimal in a list, of a name that is too long to be moved": [(b"x-" + b"y" * 253, array(array(DECIMAL)))],
    "a decimal in a table, behind as many x-headers as are moved": [*MANY, (b"x-prices", table([(b"tea", DECIMAL)]))],
    "a stream's filter that is no text": [*MANY, (b"x-stream-filter-value", table([]))],
}


@pytest.mark.parametrize("headers", UNSTREAMED.values(), ids=UNSTREAMED.keys())
async def test_f1_a_retry_without_a_handler_is_a_letter_whatever_a_stream_cannot_take(
    rabbitmq: Stage, broker: Shared, headers: Fields
) -> None:
    begun: Log[int] = Log()
    go = asyncio.Event()
    service = Service("wary")

    @service.on("order.placed", retry=fixed(2, 0.2))
    async def work(message: Message) -> None:
        begun.append(1)
        await go.wait()
        raise ValueError

    async with rabbitmq.hosting(service) as hosted:
        await send(rabbitmq, headers, b"odd")
        await begun.reaches(1)
        await removed(rabbitmq, hosted, broker.node, "wary.work", go)
    (letter,) = await rabbitmq.letters("wary")
    assert (letter.message.body, letter.failure.handler) == (b"odd", "work")


TRICKS: dict[str, tuple[Fields, dict[str, bytes]]] = {
    "another routing key": ([(b"tidegate-routing-key", string("another.type"))], {}),
    "a key that is no text": ([(b"tidegate-routing-key", array())], {}),
    "x-headers": ([(b"x-tenant", string("7")), (b"X-Upper", string("8")), (b"X-Death", string("9"))], {}),
    "headers set aside": ([(b"tidegate-original-note", string("7")), (b"tidegate-original-expiration", whole(1))], {}),
    "properties": ([], {"expiration": b"60000", "user_id": b"guest", "type": b"amqp-1.0", "delivery_mode": b"\x01"}),
    "a decimal for an id": ([(b"ce-id", DECIMAL)], {}),
}


@pytest.mark.parametrize("trick", TRICKS.values(), ids=TRICKS.keys())
async def test_f3_a_strangers_message_is_the_same_in_its_retry(
    rabbitmq: Stage, trick: tuple[Fields, dict[str, bytes]]
) -> None:
    log: Log[Message] = Log()
    async with rabbitmq.hosting(twice(log)):
        await send(rabbitmq, trick[0], **trick[1])
        await log.reaches(2)
    first, second = log
    assert first.type == second.type == "order.placed"
    assert (first.id, first.headers) == (second.id, second.headers)


async def test_f3_headers_that_are_just_not_too_large_are_so_in_a_retry_too(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    async with rabbitmq.hosting(twice(log)):
        await send(rabbitmq, [*Bulk("large", 47).fields(), (b"rest", string("x" * 500))])
        await log.reaches(2)
    assert log[0].headers == log[1].headers


@pytest.mark.parametrize(
    "headers",
    [
        {"cloudEvents_correlationid": "c" * 300},
        {"cloudEvents_id": "i" * 300},
        {"traceparent": "t" * 30_000, "tracestate": "t" * 10_000},
    ],
    ids=["correlation", "id", "trace"],
)
async def test_d3_a_handler_answers_a_stranger_whose_ids_are_too_long_to_go_on(
    rabbitmq: Stage, headers: dict[str, Any]
) -> None:
    answers: Log[Message] = Log()
    service = Service("polite")

    @service.on("order.placed")
    async def answer(message: Message) -> Shipped:
        return Shipped(number=1)

    @service.on(Shipped)
    async def see(shipped: Shipped, message: Message) -> None:
        answers.append(message)

    async with rabbitmq.hosting(service):
        await rabbitmq.raw("order.placed", b"{}", headers)
        await answers.reaches(1)
    assert answers[0].causation_id is not None
    assert len(answers[0].causation_id) <= 255


async def test_f5_a_forged_count_of_a_first_delivery_makes_no_suspect(rabbitmq: Stage) -> None:
    log: Log[int] = Log()
    service = Service("wary")

    @service.on("order.placed")
    async def work(message: Message) -> None:
        log.append(1)

    async with rabbitmq.hosting(service, crash_limit=1):
        for _ in range(5):
            await send(rabbitmq, [(b"x-delivery-count", whole(1000)), (b"x-acquired-count", whole(1000))])
        await log.reaches(5)
        # a suspect would have been marked: there is no stream of marks
        assert await missing(rabbitmq, "wary.suspects")
    assert await rabbitmq.letters("wary", 0) == []


async def missing(stage: Stage, queue: str) -> bool:
    try:
        await stage.ready(queue)
    except Exception as error:
        assert "404" in str(error) or "NOT_FOUND" in str(error), error
        return True
    return False


async def test_p5_what_json_cannot_hold_is_told_and_never_leaves(stage: Stage) -> None:
    with pytest.raises(Exception, match=r"order\.placed: JSON cannot hold it"):
        await stage.bus.publish(Placed(note="\ud800"))
