"""Hostile messages as bytes: what a stranger may put into keys, properties, headers and bodies.

Everything here is made of bytes, by an encoder of its own: names twice, kinds that no client of ours writes, text that
is no UTF-8. `accepted` is what RabbitMQ lets in; `any_header` is more than that, for what reads headers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import strategies as st

from .bodies import BODIES
from .fields import NAMES, SHORTS, short, table
from .forgeries import HEADERS, REFUSED, Bulk


CONTENT_TYPES = st.sampled_from(
    [
        *(b"application/json", b"application/json; charset=utf-16", b"APPLICATION/CLOUDEVENTS+JSON", b"text/plain"),
        *(
            b"application/cloudevents" + rest
            for rest in (b"+json", b"+avro", b"-batch+json", b"", b"+json;charset=\xff")
        ),
    ]
)
TIMES = st.sampled_from([0, 1, 1_700_000_000, 1 << 40, (1 << 64) - 1])
BITS = {
    "content_type": (15, SHORTS | CONTENT_TYPES),
    "content_encoding": (14, SHORTS | st.sampled_from([b"gzip", b"deflate", b"br", b"utf-16"])),
    "headers": (13, HEADERS),
    "delivery_mode": (12, st.sampled_from([b"\x01", b"\x02"])),
    "priority": (11, st.binary(min_size=1, max_size=1)),
    "correlation_id": (10, SHORTS),
    "reply_to": (9, SHORTS),
    "expiration": (8, st.sampled_from([b"0", b"1", b"40", b"60000", b"4294967295"])),
    "message_id": (7, SHORTS),
    "timestamp": (
        6,
        st.sampled_from([0, 1, 1_700_000_000, 1 << 40, (1 << 64) - 1]).map(lambda at: struct.pack(">Q", at)),
    ),
    "type": (5, SHORTS | st.just(b"amqp-1.0")),
    "user_id": (4, st.just(b"guest")),
    "app_id": (3, SHORTS),
    "cluster_id": (2, SHORTS),
}
"""Each property with the bit of its flag and what a stranger may put into it."""

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


LARGEST = 100_000
"""Bytes of headers that leave room in a frame for all else."""
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


def crossed(pool: Sequence[Hostile], chance: Random) -> Hostile:
    """Return a message of which each part is another's."""
    headers, others, words, body = (chance.choice(pool) for _ in range(4))
    given = {name: value for each in (headers, others) for name, value in each.given if chance.random() < 0.7}
    if chance.random() < 0.6:
        # what expires first shows the least
        given.pop("expiration", None)
    fields = list(headers.headers)
    if sum(len(value) for _, value in (*headers.headers, *others.headers)) < LARGEST:
        fields += [field for field in others.headers if chance.random() < 0.5]
    return tame(assembled([words.words], given | ({"headers": fields} if fields else {}), body.body))


def is_text(value: bytes) -> bool:
    """Tell whether the bytes are UTF-8."""
    return value.decode(errors="replace").encode() == value


def deadly(name: bytes, value: bytes) -> bool:
    """Tell whether a broker that dead-letters the header into a stream crashes over it."""
    if name == b"x-stream-filter-value":
        return value[:1] != b"S" or not is_text(value[5:])
    # one too many is left out here and there: these bytes may be something else's
    return value[:1] == b"D" or (name[:2] == b"x-" and value[:1] in (b"A", b"F") and b"D" in value)


def tame(hostile: Hostile) -> Hostile:
    """Return the message without what breaks RabbitMQ itself where a message expires in a queue.

    Every version stumbles over decimals, and 4.x also over those inside of what stands in an `x-` header; 3.10 over
    `x-death` and a type of AMQP 1.0; 4.3 over properties that are no text; 4.x over a stream's filter that is none.
    """
    if not hostile.has("expiration"):
        return hostile
    given = {
        name: value
        for name, value in hostile.given
        if (name, value) != ("type", b"amqp-1.0") and (name in NO_TEXT or is_text(value))
    }
    headers = [(name, value) for name, value in hostile.headers if name != b"x-death" and not deadly(name, value)]
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
