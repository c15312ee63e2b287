"""Whatever a stranger sends: reading it never raises, and copies of it are the same message."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from hypothesis import HealthCheck, example, given, settings

from bus import Letter, Message
from bus.delivery import MOST_HEADERS
from bus.outcome import Failure, Retry
from bus.transport.rabbitmq import copies, envelope, records, wire
from bus.transport.rabbitmq.channel import Received
from bus.transport.rabbitmq.envelope import Arrived
from bus.transport.rabbitmq.fold import Fold
from bus.transport.rabbitmq.records import Entry
from tests.hostile.fields import array, string, table
from tests.hostile.messages import Hostile, accepted, any_message, assembled, content_header


KEY = "order.placed"
AT = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = Failure(
    service="hostile",
    handler="work",
    reason="exhausted",
    error_type="ValueError",
    error="no",
    traceback="Traceback",
    attempts=2,
    first_failed_at=AT,
    last_failed_at=AT + timedelta(seconds=3),
    worker="here:1",
)
thoroughly = settings(
    max_examples=200,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def delivered(raw: bytes, body: bytes, key: str = KEY, *, ours: bool = False) -> Arrived:
    return envelope.decode(raw, body, key, ours=ours)


def as_header(flags: int, properties: bytes, body: bytes) -> bytes:
    assert len(properties) < 131_000
    return struct.pack(">HHQH", 60, 0, len(body), flags) + properties


def otherwise_ordered(raw: bytes) -> bytes:
    """Return the content header as RabbitMQ 3.10 may hand it out after a delay: with its headers in another order."""
    properties = dict(wire.properties(raw))
    properties["headers"] = dict(reversed(properties.get("headers", {}).items()))
    return as_header(*copies.encode(properties), b"")


def what(arrived: Arrived) -> dict[str, Any]:
    """Return what a handler sees of a message; the size of the headers is the copy's own."""
    return what_of(arrived.message)


def what_of(message: Message) -> dict[str, Any]:
    return {
        name: getattr(message, name)
        for name in message.__dataclass_fields__
        if name not in ("header_bytes", "problems", "id_made_up")
    }


@given(any_message)
@thoroughly
def test_reading_is_total_and_tells_the_same_each_time(hostile: Hostile) -> None:
    raw = content_header(hostile)
    first = delivered(raw, hostile.body)
    assert first.attempt == 1
    assert first.first_failed_at is None
    assert first.redelivered == 0
    assert first.routed_by is None
    again = delivered(raw, hostile.body)
    if not first.message.id_made_up:
        assert what(first) == what(again)
    method = struct.pack(">IB", wire.DELIVER, 0) + struct.pack(">QB", 1, 1) + wire.short("events") + wire.short(KEY)
    envelope.deliveries_before(method, raw)


SET_ASIDE: Any = [(b"tidegate-original-", string("98")), (b"", b"D\x00\x00\x00\x00\x01")]
MANY: Any = [(b"x-%d" % number, b"V") for number in range(200)]
DECIMAL: Any = b"D\x02\x00\x00\x01\xa4"
TENANTS: Any = [(b"tidegate-original-ce-tenant", string("theirs")), (b"cloudEvents:tenant", string("mine"))]
IDS: Any = [(b"cloudEvents_id", array(b"t\x01")), (b"ce-id", string("one")), (b"ce-tenant", b"V"), *TENANTS]
TWICE: Any = [(b"X-Upper", string("mine")), (b"tidegate-original-X-Upper", string("theirs"))]


@given(any_message)
@example(assembled([], {"headers": SET_ASIDE}, b"{}"))
@example(assembled([], {"headers": TWICE}, b"{}"))
@example(assembled([], {"headers": TENANTS}, b"{}"))
@example(assembled([], {"headers": IDS}, b"{}"))
@example(assembled([], {"headers": [(b"x-" + b"y" * 253, array(array(DECIMAL)))]}, b"{}"))
@example(assembled([], {"headers": [*MANY, (b"x-prices", table([(b"tea", DECIMAL)]))]}, b"{}"))
@example(assembled([], {"headers": [*MANY, (b"x-stream-filter-value", string("mine"))]}, b"{}"))
@thoroughly
def test_a_retry_is_the_same_message_with_its_attempt(hostile: Hostile) -> None:
    first = delivered(content_header(hostile), hostile.body)
    if first.message.header_bytes > MOST_HEADERS:
        return  # never retried
    raw, seen = content_header(hostile), first
    for attempt in (2, 3):
        flags, properties = copies.retry(raw, seen.message, seen.routing_key, Retry(timedelta(), FAILURE, attempt), {})
        raw = otherwise_ordered(as_header(flags, properties, hostile.body))
        seen = delivered(raw, hostile.body, "300.hostile.work", ours=True)
        assert what(seen) == what(first)
        assert seen.message.header_bytes <= MOST_HEADERS
        assert (seen.attempt, seen.first_failed_at) == (attempt, FAILURE.first_failed_at)
        read = wire.properties(raw)
        assert "expiration" not in read
        assert "user_id" not in read
        assert read["delivery_mode"] == 2
        harmful = [name for name in read["headers"] if name in ("CC", "BCC") or name.startswith(("x-d", "x-stream-"))]
        harmful += [name for name, value in read["headers"].items() if name[:2] == "x-" and "Decimal" in repr(value)]
        assert not harmful
        assert not any(name.startswith("tidegate-d") for name in read["headers"])


TWO_IDS: Any = [(b"ce-id", b"b\x00"), (b"cloudEvents_id", b"A\x00\x00\x00\x00")]


@given(any_message)
@example(assembled([], {"headers": TWO_IDS}, b"{}"))
@thoroughly
def test_a_dead_letter_tells_all_and_its_replay_is_the_message_as_it_came(hostile: Hostile) -> None:
    raw = content_header(hostile)
    first = delivered(raw, hostile.body)
    flags, properties, body = copies.dead_letter(raw, hostile.body, first.message, first.routing_key, FAILURE)
    message, failure, entry = folded(flags, properties, body)
    assert what_of(message) == what(first)
    assert message.body == first.message.body
    assert failure == FAILURE
    raw_again, body_again = entry.original
    assert body_again == hostile.body
    flags, properties = copies.replay(raw_again, entry.told, "t")
    again = delivered(as_header(flags, properties, hostile.body), hostile.body, "hostile.work")
    assert what(again) == what(first)
    assert (again.attempt, again.first_failed_at, again.routed_by) == (1, None, None)


@given(accepted)
@thoroughly
def test_what_the_broker_dead_letters_by_itself_is_a_letter_whatever_it_says(hostile: Hostile) -> None:
    # a stream drops tables and arrays, and the broker's own words replace forged ones
    given = [(n, v) for n, v in hostile.headers if v[:1] not in (b"A", b"F") and not n.startswith(b"x-first-death")]
    told = [(b"x-first-death-queue", string("hostile.work")), (b"x-first-death-reason", string("expired"))]
    dead = assembled([], {**dict(hostile.given), "headers": given + told}, hostile.body)
    message, failure, entry = folded(dead.flags, dead.properties, hostile.body)
    assert (failure.handler, failure.reason, failure.service) == ("work", "expired", "hostile")
    copies.replay(entry.received.header, entry.told, "t")
    assert failure.last_failed_at - AT
    Letter(
        id="0-0", service="hostile", handler=failure.handler, message=message, failure=failure, failed_again=0
    ).as_json()


def folded(flags: int, properties: bytes, body: bytes, offset: int = 0) -> tuple[Message, Failure, Entry]:
    """Return the one letter of a stream in which there is this entry, as a stream has it: without tables and arrays."""
    read = wire.properties(as_header(flags, properties, body))
    kept = {name: value for name, value in read.get("headers", {}).items() if not isinstance(value, dict | list)}
    headers = {**kept, "x-stream-offset": offset}
    header = as_header(*copies.encode({**read, "headers": headers}), body)
    entry = Entry(0, offset, headers, Received(cast("Any", None), b"", header, body), "hostile.work", direct=False)
    fold = Fold("hostile", "")
    fold.add(entry)
    (row,) = fold.rows.values()
    assert fold.is_open(row)
    message, failure = records.read(entry, "hostile", "")
    known = records.known(entry, "hostile", "")
    assert (known.key, known.place) == records.identity(message, failure, headers)
    return message, failure, entry
