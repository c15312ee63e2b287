"""The values and the names of AMQP's field tables, as bytes: every kind, also such as no client of ours writes."""

from __future__ import annotations

import struct

from hypothesis import strategies as st


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
