"""Hostile messages as bytes: what a stranger may put into keys, properties, headers and bodies.

Everything here is made of bytes, by an encoder of its own: names twice, kinds that no client of ours writes, text that
is no UTF-8. `accepted` is what RabbitMQ lets in; `any_header` is more than that, for what reads headers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


FORGED = "hostile.spy"
"""The queue that forged routing names; no message of ours may ever reach it."""

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            *("", " ", "0", "-1", "1e9", "nan", "null", "true", "id\r\nforged", "a\x1b[2J", "\u2028", "\x00", "größe"),
            '{"event": "ack"}\n{"event": "forged"}',
            *("x" * 255, "ß" * 127, "y" * 300, "z" * 1000),
        ]
    ),
)
BYTES = st.one_of(
    TEXTS.map(str.encode), st.binary(max_size=30), st.sampled_from([b"\xff\xfe", b"\xed\xa0\x80", b"\xd0" * 255])
)
SHORTS = BYTES.map(lambda raw: raw[:255])

NUMBERS = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">q", "f": ">f", "d": ">d"}


def short(raw: bytes) -> bytes:
    """A short string."""
    return bytes((len(raw),)) + raw


def long(raw: bytes) -> bytes:
    """A long string, or the inside of a table or array."""
    return struct.pack(">I", len(raw)) + raw


def string(text: str | bytes) -> bytes:
    """A value of the kind string."""
    return b"S" + long(text.encode() if isinstance(text, str) else text)


def whole(number: int) -> bytes:
    """A value of the kind whole number, 64 bits."""
    return b"l" + struct.pack(">q", number)


def array(*values: bytes) -> bytes:
    """A value of the kind array."""
    return b"A" + long(b"".join(values))


def table(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A value of the kind table."""
    return b"F" + long(b"".join(short(name) + value for name, value in fields))


def nested(levels: int, kind: str) -> bytes:
    """Tables in tables, or arrays in arrays."""
    value = b"V"
    for _ in range(levels):
        value = table([(b"n", value)]) if kind == "F" else array(value)
    return value


def _numbers(kind: str, code: str) -> st.SearchStrategy[bytes]:
    if kind in "fd":
        numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
        return numbers.map(lambda number: kind.encode() + struct.pack(code, number))
    size = struct.calcsize(code)
    return st.binary(min_size=size, max_size=size).map(lambda raw: kind.encode() + raw)


SCALARS = st.one_of(
    BYTES.map(string),
    BYTES.map(lambda raw: b"x" + long(raw)),
    *(_numbers(kind, code) for kind, code in NUMBERS.items()),
    st.sampled_from([b"t\x00", b"t\x01", b"V", whole(10**9), whole(-1)]),
    st.tuples(st.integers(0, 255), st.integers(0, (1 << 32) - 1)).map(lambda d: b"D" + struct.pack(">BI", *d)),
    st.sampled_from([0, 1, 1_700_000_000, 1 << 40, (1 << 63) - 1]).map(lambda at: b"T" + struct.pack(">Q", at)),
)
NAMES = st.one_of(
    st.text(max_size=8).map(str.encode),
    st.sampled_from([b"", b"a", b"\xff", b"h\xf6flich", b"x-" + b"y" * 253, b"X-Upper", b"x-lower", b"n" * 255]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: array(*items))
        | st.lists(st.tuples(NAMES, inner), max_size=3).map(table)
    ),
    max_leaves=5,
)
DEATH = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["q", "hostile.spy", "delay.3", "hostile.retry.300"]).map(string) | SCALARS,
        "exchange": st.sampled_from(["", "events", "hostile.return", "delay.due"]).map(string) | SCALARS,
        "reason": st.sampled_from(["expired", "rejected", "delivery_limit", "maxlen"]).map(string),
        "count": st.sampled_from([1, 99, -1]).map(whole),
        "routing-keys": st.just(array(string(FORGED))),
        "time": st.just(b"T" + struct.pack(">Q", 1)),
    },
).map(lambda death: table([(name.encode(), value) for name, value in death.items()]))
"""One entry of `x-death`."""

MEANINGFUL = {
    **dict.fromkeys(["x-death"], st.lists(DEATH, min_size=1, max_size=2).map(lambda deaths: array(*deaths))),
    "x-first-death-queue": st.just(string("hostile.fine")),
    "x-first-death-reason": st.just(string("expired")),
    "x-delivery-count": st.sampled_from([whole(1000), whole(-1), string("9")]),
    "x-acquired-count": st.just(whole(1000)),
    "x-stream-offset": st.sampled_from([whole(1 << 60), string("last")]),
    "x-anything": SCALARS,
    "tidegate-attempt": st.sampled_from([whole(10**9), whole(-5), whole(3), string("many"), string("2")]),
    "tidegate-first-failed-at": st.sampled_from(["2001-01-01", "9999-12-31T23:59:59-23:59", "soon"]).map(string),
    "tidegate-hops": st.sampled_from([whole(-1), whole(5), string("many"), whole(1 << 62)]),
    "tidegate-routing-key": VALUES,
    "tidegate-routed": st.sampled_from([b"t\x01", string("yes")]),
    "tidegate-id": VALUES,
    "tidegate-nested": st.sampled_from(["{", "[]", '{"CC": ["hostile.spy"]}', "7"]).map(string),
    "tidegate-wrapped": st.just(b"t\x01"),
    "tidegate-failure-service": st.just(string("elsewhere")),
    "tidegate-failure-handler": st.just(string("spy")),
    "tidegate-failure-attempts": st.sampled_from([string("9" * 5000), whole(7), string("²")]),
    "tidegate-failure-last-failed-at": st.sampled_from([string("2001-01-01"), b"V"]),
    "tidegate-failure-unheard-of": VALUES,
    "tidegate-mark": st.sampled_from(["discarded", "replayed", "claim", "released"]).map(string),
    "tidegate-letter": st.integers(0, 20).map(lambda offset: string(f"0-{offset}")),
    "tidegate-token": SCALARS,
    "tidegate-at": st.sampled_from(["2001-01-01", "soon"]).map(string),
    "tidegate-suspect": st.just(string("fine 1")),
    "tidegate-begun": st.just(b"t\x01"),
    "tidegate-due": st.sampled_from(["events", "queue"]).map(string),
    "tidegate-d0": st.sampled_from([b"t\x01", b"t\x00"]),
    "tidegate-d27": st.just(b"t\x01"),
    "tidegate-original-CC": st.just(array(string(FORGED))),
    "tidegate-original-expiration": st.just(string("1")),
    "tidegate-original-": SCALARS,
    "CC": st.sampled_from([array(string(FORGED), string(f"0.{FORGED}"), string(f"300.{FORGED}")), array(whole(1))]),
    "BCC": st.just(array(string(FORGED), string(f"0.{FORGED}"))),
    "cloudEvents_id": VALUES,
    "cloudEvents_type": VALUES,
    "cloudEvents_time": SCALARS,
    "cloudEvents_source": SCALARS,
    "cloudEvents_specversion": SCALARS,
    "cloudEvents_dataschema": SCALARS | st.just(string("urn:tidegate:x:" + "9" * 300)),
    "cloudEvents_correlationid": SCALARS,
    "cloudEvents_expirytime": st.sampled_from(["soon", "9999-12-31T23:59:59-23:59", "2999-01-01"]).map(string),
    "ce-id": SCALARS,
    "cloudEvents:subject": SCALARS,
    "ce-tenant": VALUES,
    "cloudEvents_tenant": VALUES,
    "cloudEvents:tenant": SCALARS,
    "cloudEvents_cc": SCALARS,
    "tidegate-original-ce-tenant": SCALARS,
    "tenant": VALUES,
    "traceparent": BYTES.map(string) | st.just(string("t" * 2_000)),
    "tracestate": SCALARS,
}
"""Headers that mean something to the broker or to Tidegate, forged."""

REFUSED = [b"d" + struct.pack(">d", number) for number in (float("nan"), float("inf"))] + [b"Z", b"S\0\0\xff\xff"]
"""Values over which RabbitMQ closes the connection of whoever sends them."""
FIELDS = st.tuples(NAMES, VALUES)
FORGERIES = st.sampled_from(sorted(MEANINGFUL)).flatmap(
    lambda name: MEANINGFUL[name].map(lambda value: (name.encode(), value))
)


@dataclass(frozen=True)
class Bulk:
    """Headers of one kind, many or large: short to tell, and made when they are needed."""

    kind: str
    amount: int

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return them."""
        if self.kind == "large":
            return [(b"h%d" % number, string("x" * 1000)) for number in range(self.amount)]
        if self.kind == "moved":  # each has a longer name on a copy
            return [(b"x-%d" % number, b"V") for number in range(self.amount)]
        return [(b"deep", nested(self.amount, self.kind))]


BULKS = st.sampled_from(
    [
        *(Bulk("large", kilobytes) for kilobytes in (2, 20, 46, 47, 60, 100, 120)),
        *(Bulk("moved", amount) for amount in (1_000, 2_000, 6_000)),
        *(Bulk(kind, levels) for kind in "FA" for levels in (10, 63, 64, 65, 100)),
    ]
)
HEADERS = st.one_of(
    st.lists(FIELDS | FORGERIES | FORGERIES, max_size=8),
    st.lists(FORGERIES, min_size=1, max_size=4),
    st.lists(FIELDS, max_size=6).map(lambda fields: fields + fields[:1]),
    BULKS,
)

CONTENT_TYPES = st.sampled_from(
    [b"application/json", *(b"application/cloudevents" + rest for rest in (b"+json", b"+avro", b"-batch+json", b""))]
)
BITS = {
    "content_type": (15, SHORTS | CONTENT_TYPES),
    "content_encoding": (14, SHORTS),
    "headers": (13, HEADERS),
    "delivery_mode": (12, st.sampled_from([b"\x01", b"\x02"])),
    "priority": (11, st.binary(min_size=1, max_size=1)),
    "correlation_id": (10, SHORTS),
    "reply_to": (9, SHORTS),
    "expiration": (8, st.sampled_from([b"0", b"1", b"40", b"60000", b"4294967295"])),
    "message_id": (7, SHORTS),
    "timestamp": (6, st.sampled_from([0, 1, 1_700_000_000, 1 << 40]).map(lambda at: struct.pack(">Q", at))),
    "type": (5, SHORTS | st.just(b"amqp-1.0")),
    "user_id": (4, st.just(b"guest")),
    "app_id": (3, SHORTS),
    "cluster_id": (2, SHORTS),
}
"""Each property with the bit of its flag and what a stranger may put into it."""

BODIES = st.one_of(
    st.just(b"{}"),
    BYTES,
    st.sampled_from(
        [
            *(b"[" * 2000, b'{"number": 1e999}', b'{"number": "\\ud800"}', b"null", b'{"number": -0}', b"\x00" * 50),
            b'{"specversion": "1.0", "id": "s", "source": "/s", "type": "hostile.structured", "data": {"number": 1}}',
            b'{"specversion": "1.0", "type": 7}',
            b'{"specversion": "1.0", "type": "t", "tenant": "e", "cc": "x", "at": [], "data": {"number": 1}}',
            b'{"type": "t", "datacontenttype": "text/plain", "traceparent": {"a": 1}, "data": {"number": 1}}',
            b'{"specversion": "1.0", "type": "t", "data_base64": "!"}',
            b'{"specversion": "1.0", "type": "t", "id": {"a": 1}, "time": [], "data": {"number": 1}}',
        ]
    ),
)
WORDS = st.lists(st.sampled_from([b"", b"#", b"*", b"\xff\xfe", b"a" * 40, b"\r\n", b"1.0"]), max_size=5)


@dataclass(frozen=True)
class Hostile:
    """One message of a stranger: its words behind the first of the key, its flags and properties, and its body."""

    words: bytes
    flags: int
    properties: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    given: tuple[tuple[str, bytes], ...]

    def __repr__(self) -> str:
        names = [name[:40] for name, _ in self.headers[:12]]
        return f"Hostile({len(self.headers)} headers {names}, {self.given}, {self.body[:80]!r})"[:1500]

    def has(self, name: str) -> bool:
        """Tell whether it has a header or a property of this name."""
        return any(header == name.encode() for header, _ in self.headers) or name in dict(self.given)


NO_TEXT = ("headers", "delivery_mode", "priority", "timestamp")


def assembled(words: list[bytes], given: dict[str, Any], body: bytes) -> Hostile:
    """Put a message together."""
    flags, parts = 0, []
    headers = given.get("headers", [])
    fields: list[tuple[bytes, bytes]] = headers.fields() if isinstance(headers, Bulk) else headers
    for name, (bit, _) in BITS.items():
        if name not in given:
            continue
        flags |= 1 << bit
        if name == "headers":
            parts.append(table(fields)[1:])
        elif name in NO_TEXT:
            parts.append(given[name])
        else:
            parts.append(short(given[name]))
    plain = tuple((name, value) for name, value in given.items() if name != "headers")
    return Hostile(b".".join(words)[:200], flags, b"".join(parts), body, tuple(fields), plain)


def content_header(hostile: Hostile, body: bytes | None = None) -> bytes:
    """Return the payload of the content header, as a delivery has it."""
    size = len(hostile.body if body is None else body)
    return struct.pack(">HHQH", 60, 0, size, hostile.flags) + hostile.properties


def with_refused(hostile: Hostile, field: tuple[bytes, bytes], mode: bytes) -> Hostile:
    """Return the message with what the broker lets nobody send."""
    given = {**dict(hostile.given), "headers": [*hostile.headers, field], "delivery_mode": mode}
    return assembled([hostile.words], given, hostile.body)


def is_text(value: bytes) -> bool:
    """Tell whether the bytes are UTF-8."""
    return value.decode(errors="replace").encode() == value


def tame(hostile: Hostile) -> Hostile:
    """Return the message without what breaks RabbitMQ itself where a message expires in a queue.

    3.10 stumbles over decimals, `x-death` and a type of AMQP 1.0; 4.3 over properties that are no text.
    """
    if not hostile.has("expiration"):
        return hostile
    given = {
        name: value
        for name, value in hostile.given
        if (name, value) != ("type", b"amqp-1.0") and (name in NO_TEXT or is_text(value))
    }
    headers = [(name, value) for name, value in hostile.headers if name != b"x-death" and value[:1] != b"D"]
    return assembled([hostile.words], {**given, "headers": headers}, hostile.body)


PROPERTIES = st.fixed_dictionaries({}, optional={name: kind for name, (_, kind) in BITS.items()})
untamed = st.builds(assembled, WORDS, PROPERTIES, BODIES)
accepted = untamed.map(tame)
"""What RabbitMQ takes from anyone, and survives."""
any_message = st.one_of(
    untamed,
    untamed,
    st.builds(
        with_refused, untamed, st.tuples(NAMES, st.sampled_from(REFUSED)), st.sampled_from([b"\x00", b"\x01", b"\xff"])
    ),
)
