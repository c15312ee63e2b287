"""What goes out comes in as it was; and whatever came from a stranger can be sent on."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from pydantic import Base64Bytes

from bus import Event, Letter, Message
from bus.clock import LONGEST_DELAY
from bus.event import decode
from bus.message import LONGEST_ID, RESERVED_HEADERS, RESERVED_PREFIXES, wrap
from bus.outcome import Failure
from bus.packing import edited, pack, unpack
from bus.transport.rabbitmq import delay, envelope


AT = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = Failure(
    service="stock",
    handler="work",
    reason="rejected",
    error_type="Reject",
    error="no",
    traceback="",
    attempts=1,
    first_failed_at=AT,
    last_failed_at=AT,
    worker="here:1",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=80).filter(
    lambda id: len(id.encode()) <= LONGEST_ID
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda name: name.lower() not in RESERVED_HEADERS and not name.startswith(RESERVED_PREFIXES)
)
TYPES = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=4).map(".".join)
TIMES = st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
MESSAGES = st.builds(
    Message,
    id=IDS,
    type=TYPES,
    version=st.none() | st.integers(1, 10**6),
    source=TYPES.map(lambda name: f"/{name}"),
    time=TIMES,
    body=st.binary(max_size=200),
    correlation_id=IDS,
    causation_id=st.none() | IDS,
    hops=st.integers(0, 1000),
    key=st.none() | IDS,
    subject=st.none() | IDS,
    expires=st.none() | TIMES,
    headers=st.dictionaries(NAMES, TEXTS, max_size=4),
)
LONG = st.builds(str.__mul__, st.sampled_from(["t", "ß", "/a", "€"]), st.integers(1, 400))
STRANGERS = st.builds(
    replace,
    MESSAGES,
    id=LONG,
    type=LONG,
    source=LONG,
    correlation_id=LONG,
    causation_id=LONG,
    time=st.datetimes(timezones=st.just(UTC)),
    content_type=LONG,
)
"""What the headers of a stranger may say, as they have more room than the properties that repeat them."""
SENT_ON = st.builds(lambda wants, to: {"wants": wants, "reply_to": to}, TYPES, IDS) | st.just({})


class Packed(Event, type="parcel.packed"):
    name: str
    content: Base64Bytes
    weights: tuple[float, ...]
    labels: tuple[tuple[str, int | None], ...]
    at: datetime


PACKED = st.builds(
    Packed,
    name=TEXTS,
    content=st.binary(max_size=50).map(b64encode),
    weights=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    labels=st.lists(st.tuples(TEXTS, st.none() | st.integers()), max_size=3).map(tuple),
    at=st.datetimes(timezones=st.just(UTC)),
)


@given(MESSAGES, SENT_ON, st.timedeltas(timedelta(microseconds=1), LONGEST_DELAY))
def test_a_message_comes_out_as_it_went_in_delayed_or_not(
    message: Message, request: dict[str, str], after: timedelta
) -> None:
    message = replace(message, **request)  # type: ignore[arg-type]
    for added in (None, delay.headers(after, delay.TO_EVENTS)):
        raw = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + envelope.encode(message, added)
        arrived = envelope.decode(raw, message.body, message.type, ours=False)
        assert arrived.message == message
        assert (arrived.attempt, arrived.redelivered, arrived.message.problems) == (1, 0, ())


@given(PACKED, st.dictionaries(NAMES, TEXTS, max_size=3), MESSAGES)
def test_an_event_comes_out_as_it_went_in_whatever_caused_it(
    event: Packed, headers: dict[str, str], cause: Message
) -> None:
    message = wrap(event, id="7", source="/shop/stock", limit=1 << 20, cause=cause, headers=headers)
    raw = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + envelope.encode(message)
    arrived = envelope.decode(raw, message.body, message.type, ours=False).message
    assert arrived == message
    assert decode(Packed, arrived.body, arrived.version) == event


@given(MESSAGES)
def test_a_letter_that_was_packed_is_as_it_was(message: Message) -> None:
    letter = Letter(id="0-1", service="stock", handler="work", message=message, failure=FAILURE)
    assert unpack(json.loads(json.dumps(pack(letter)))) == letter


@given(STRANGERS, st.binary(max_size=20))
def test_an_edit_of_what_a_stranger_sent_can_be_sent_however_long_its_attributes_are(
    message: Message, body: bytes
) -> None:
    sent = edited(Letter(id="0-1", service="stock", handler="work", message=message, failure=FAILURE), body)
    raw = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + envelope.encode(sent)
    again = envelope.decode(raw, body, "", ours=False).message
    assert replace(again, content_type="") == replace(sent, content_type="")
    assert sent.content_type.startswith(again.content_type)
