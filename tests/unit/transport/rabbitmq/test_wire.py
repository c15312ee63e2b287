"""Our codec against pamqp's: what one writes the other reads, and garbage is told from frames."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import pamqp.frame
import pamqp.header
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, decode

from bus.transport.rabbitmq import wire


SHORT = st.text(max_size=60)
"""At most 240 bytes of UTF-8."""
NAMES = st.text(max_size=30)
EXCHANGES = st.from_regex(r"[a-zA-Z0-9-_.:@#,/+ ]{0,60}", fullmatch=True)
"""pamqp takes no others."""
TAGS = st.integers(1, (1 << 63) - 1)
CHANNELS = st.integers(1, 2047)
WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)
SCALARS = (
    st.text()
    | st.booleans()
    | WHOLE
    | st.floats(width=32, allow_nan=False)
    | st.none()
    | st.binary().map(bytearray)
    | st.decimals(min_value=-1000, max_value=1000, places=3)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={name: SHORT.filter(bool) for bit, name, kind in wire.PROPERTIES if kind == "s" and name != "cluster_id"}
    | {
        "headers": st.dictionaries(NAMES, VALUES, min_size=1, max_size=6),
        "delivery_mode": st.integers(1, 2),
        "priority": st.integers(1, 255),
        "timestamp": st.integers(0, 0xFFFFFFFF).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    },
)
NUMBERS = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">q", "f": ">f", "d": ">d"}


def payload(frame: bytes) -> bytes:
    return frame[7:-1]


def header_of(properties: dict[str, Any], size: int = 0) -> bytes:
    given = {"message_type" if name == "type" else name: value for name, value in properties.items()}
    content = pamqp.header.ContentHeader(0, size, commands.Basic.Properties(**given))
    return payload(pamqp.frame.marshal(content, 1))


def raw_header(flags: int, properties: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 0, flags) + properties


def raw_headers(table: bytes) -> bytes:
    return raw_header(1 << 13, struct.pack(">I", len(table)) + table)


def read_headers(table: bytes) -> Any:
    return wire.properties(raw_headers(table))["headers"]


def sized(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def named(value: bytes) -> st.SearchStrategy[bytes]:
    return st.text(max_size=6).map(lambda name: wire.short(name) + value)


def numbers(kind: str, code: str) -> st.SearchStrategy[bytes]:
    size = struct.calcsize(code)
    return st.binary(min_size=size, max_size=size).map(lambda raw: kind.encode() + raw)


RAW_SCALARS = st.one_of(
    *(numbers(kind, code) for kind, code in NUMBERS.items()),
    st.binary(max_size=30).map(lambda raw: b"S" + sized(raw)),
    st.binary(max_size=30).map(lambda raw: b"x" + sized(raw)),
    st.sampled_from([b"t\x00", b"t\x01", b"V", b"\x00"]),
    st.tuples(st.integers(0, 28), st.integers(-(1 << 31), (1 << 31) - 1)).map(lambda d: b"D" + struct.pack(">Bi", *d)),
    st.integers(0, 253_402_300_799_000).map(lambda time: b"T" + struct.pack(">Q", time)),  # pamqp's end of time
)
RAW_VALUES = st.recursive(
    RAW_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: b"A" + sized(b"".join(items)))
        | st.lists(inner.flatmap(named), max_size=4).map(lambda items: b"F" + sized(b"".join(items)))
    ),
    max_leaves=10,
)
RAW_TABLES = st.lists(RAW_VALUES.flatmap(named), max_size=6).map(b"".join)


def told_alike(ours: Any, theirs: Any) -> bool:
    """Whether two readings of one value say the same; we leave times as seconds, pamqp makes datetimes of them."""
    match ours, theirs:
        case wire.Timestamp(), wire.Timestamp():
            return bool(ours == theirs)
        case wire.Timestamp(), datetime():
            seconds = ours / 1000 if ours > 0xFFFFFFFF else ours  # pamqp takes large ones for milliseconds
            return datetime.fromtimestamp(seconds, UTC) == theirs
        case dict(), dict():
            return list(ours) == list(theirs) and all(told_alike(ours[name], theirs[name]) for name in ours)
        case list(), list():
            return len(ours) == len(theirs) and all(map(told_alike, ours, theirs))
        case float(), float():
            return ours == theirs or (ours != ours and theirs != theirs)  # noqa: PLR0124 - NaN
        case _:
            return type(ours) is type(theirs) and bool(ours == theirs)


@given(PROPERTIES)
def test_what_pamqp_writes_is_read_as_it_was(properties: dict[str, Any]) -> None:
    read = wire.properties(header_of(properties))
    if "timestamp" in properties:
        read["timestamp"] = datetime.fromtimestamp(read["timestamp"], UTC)
    assert read == properties


@given(RAW_TABLES)
@settings(max_examples=400)
def test_every_kind_of_header_is_read_as_pamqp_reads_it(table: bytes) -> None:
    theirs = decode.field_table(sized(table))[1]
    ours = read_headers(table)
    assert told_alike(ours, theirs), (ours, theirs)


@given(RAW_TABLES)
@settings(max_examples=400)
def test_a_copy_of_headers_keeps_every_value_and_its_kind(table: bytes) -> None:
    read = read_headers(table)
    copied = read_headers(b"".join(wire.field(name, value) for name, value in read.items()))
    assert told_alike(copied, read)


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_we_write_is_read_by_pamqp(headers: dict[str, Any]) -> None:
    table = b"".join(wire.field(name, value) for name, value in headers.items())
    assert told_alike(decode.field_table(sized(table))[1], headers)


@pytest.mark.parametrize(
    "value",
    [
        1e300,
        0.1,
        -(1 << 63),
        (1 << 63) - 1,
        [b"\xff"],
        {"a": [b"\xff", {"b": b"\xfe"}]},
        {"n" * 200: 1},
        wire.Timestamp((1 << 64) - 1),
    ],
)
def test_values_that_pamqp_changes_or_refuses_are_copied_whole(value: Any) -> None:
    read = read_headers(wire.field("name", value))
    assert told_alike(read, {"name": value})


@pytest.mark.parametrize("value", [1 << 63, object(), {1, 2}, [object()]])
def test_a_value_that_amqp_has_no_kind_for_is_malformed(value: Any) -> None:
    with pytest.raises(wire.Malformed, match="no kind"):
        wire.field("name", value)


def test_names_that_are_not_utf_8_are_readable_and_not_longer_than_they_were() -> None:
    name = b"\xd0" * 255
    read = read_headers(b"\xff" + name + b"V")
    assert read == {"?" * 255: None}
    assert wire.field(*read.popitem())


def test_a_string_that_is_not_utf_8_stays_bytes() -> None:
    assert read_headers(b"\x01aS" + sized(b"\xff\xfe")) == {"a": b"\xff\xfe"}


@given(st.binary(max_size=200))
@settings(max_examples=500)
def test_garbage_is_malformed_and_nothing_else(raw: bytes) -> None:
    for read in (wire.properties, wire.headers_alone):
        try:
            read(raw)
        except wire.Malformed:
            continue


def test_twenty_thousand_damaged_headers_are_read_or_malformed() -> None:
    random = Random(7)
    table = {"text": "größe", "number": 7, "float": 1.5, "flag": True, "nothing": None, "bytes": bytearray(b"\xff")}
    whole = header_of(
        {
            "headers": table | {"nested": {"list": [1, "two", {"three": Decimal("3.3")}]}, "when": datetime.now(UTC)},
            "content_type": "application/json",
            "message_id": "id",
            "timestamp": datetime.now(UTC),
            "delivery_mode": 2,
        }
    )
    read = malformed = 0
    for _ in range(20_000):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(len(damaged))] = random.choice((0, 255, random.randrange(256), ord("F"), ord("A")))
        if random.random() < 0.3:
            del damaged[random.randrange(len(damaged)) :]
        try:
            wire.properties(bytes(damaged))
            read += 1
        except wire.Malformed:
            malformed += 1
    assert read > 1000
    assert malformed > 1000


@pytest.mark.parametrize(
    "table",
    [
        b"\x01aS\x00\x00\x00\x09123",
        b"\x01ax\x00\x00\x00\x09123",
        b"\x01al\x00\x00",
        b"\x09a",
        b"\x01aA" + sized(b"S\x00\x00\x00\x09123"),
        b"\x01aA" + sized(b"l\x00\x00"),
        b"\x01aF" + sized(b"\x01bl\x00\x00"),
        b"\x01aZ",
    ],
)
def test_a_header_that_runs_over_its_table_takes_no_other_property(table: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.properties(raw_header(1 << 13 | 1 << 7, sized(table) + wire.short("the message's id")))


@pytest.mark.parametrize("kind", [b"A", b"F"])
def test_headers_nested_without_end_are_malformed(kind: bytes) -> None:
    value = kind + sized(b"")
    for _ in range(5000):
        value = kind + sized((b"\x01n" if kind == b"F" else b"") + value)
    with pytest.raises(wire.Malformed, match="nested"):
        read_headers(b"\x01a" + value)


def test_an_array_that_fills_a_frame_is_read() -> None:
    assert read_headers(b"\x01aA" + sized(b"V" * 131_000)) == {"a": [None] * 131_000}


@given(st.dictionaries(NAMES, VALUES, max_size=4), PROPERTIES)
def test_headers_alone_are_those_of_all_properties(headers: dict[str, Any], properties: dict[str, Any]) -> None:
    plain = {"content_type": "application/json", "headers": headers or {"a": "b"}, "message_id": "id"}
    raw = header_of(plain)
    assert wire.headers_alone(raw) == wire.properties(raw)["headers"]
    raw = header_of(properties)
    assert wire.headers_alone(raw) in (None, wire.properties(raw).get("headers"))


@given(CHANNELS, EXCHANGES, SHORT, st.booleans())
def test_publish_is_pamqps(channel: int, exchange: str, key: str, mandatory: bool) -> None:
    command = commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    theirs: Any = pamqp.frame.unmarshal(wire.publish_method(channel, exchange, key, mandatory=mandatory))
    assert theirs[1] == channel
    assert dict(theirs[2]) == dict(command)


@given(CHANNELS, TAGS, st.booleans())
def test_acks_and_nacks_are_pamqps(channel: int, tag: int, on: bool) -> None:
    assert wire.ack(channel, tag, multiple=on) == pamqp.frame.marshal(commands.Basic.Ack(tag, on), channel)
    assert wire.nack(channel, tag, requeue=on) == pamqp.frame.marshal(commands.Basic.Nack(tag, False, on), channel)


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 8175, 8176, 8177, 100_000])
def test_content_is_cut_into_frames_that_pamqp_puts_together(size: int) -> None:
    body = bytes(Random(size).randbytes(size))
    data = wire.content(3, 1 << 7, wire.short("an id"), body, 4096)
    unmarshal: Any = pamqp.frame.unmarshal
    length, channel, header = unmarshal(data)
    assert (channel, header.body_size, header.properties.message_id) == (3, size, "an id")
    joined, at = b"", length
    while at < len(data):
        length, channel, piece = unmarshal(data[at:])
        assert channel == 3
        assert length <= 4096
        joined, at = joined + piece.value, at + length
    assert joined == body


def test_headers_that_do_not_fit_into_a_frame_are_malformed() -> None:
    assert wire.content(1, 0, b"x" * (4096 - 22), b"", 4096)
    with pytest.raises(wire.Malformed, match="a frame takes"):
        wire.content(1, 0, b"x" * (4096 - 21), b"", 4096)


def test_a_short_string_has_255_bytes_at_most() -> None:
    assert wire.short("x" * 255) == b"\xff" + b"x" * 255
    with pytest.raises(wire.Malformed, match="255"):
        wire.short("ß" * 128)


@given(SHORT, TAGS, st.booleans(), EXCHANGES, SHORT)
def test_a_delivery_is_read_as_pamqp_wrote_it(
    consumer: str, tag: int, redelivered: bool, exchange: str, key: str
) -> None:
    method = pamqp.frame.marshal(commands.Basic.Deliver(consumer, tag, redelivered, exchange, key), 1)
    assert wire.delivered(payload(method)) == (tag, redelivered, exchange, key)
    assert wire.redelivered(payload(method)) is redelivered


@given(SHORT, EXCHANGES, SHORT)
def test_a_return_is_read_as_pamqp_wrote_it(text: str, exchange: str, key: str) -> None:
    method = pamqp.frame.marshal(commands.Basic.Return(312, text, exchange, key), 1)
    assert wire.returned(payload(method)) == (text, exchange, key)
