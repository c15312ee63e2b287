"""The frames of AMQP 0-9-1 that travel once per message, as bytes; pure. Everything else is left to pamqp.

Layouts: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, sections 4.2.3 to 4.2.6; the kinds of header values
are RabbitMQ's, https://www.rabbitmq.com/amqp-0-9-1-errata.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from struct import Struct
from struct import error as struct_error
from typing import Any, Final

from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode


HEAD: Final = Struct(">BHI")
TAG: Final = Struct(">QB")
U16: Final = Struct(">H")
U32: Final = Struct(">I")
U64: Final = Struct(">Q")
END: Final = 0xCE
END_OCTET: Final = b"\xce"
HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

METHOD, HEADER, BODY, BEAT = 1, 2, 3, 8
DELIVER: Final = 0x3C003C
RETURN: Final = 0x3C0032
BASIC_ACK: Final = 0x3C0050
BASIC_NACK: Final = 0x3C0078

PROPERTIES: Final = (
    (15, "content_type", "s"),
    (14, "content_encoding", "s"),
    (13, "headers", "t"),
    (12, "delivery_mode", "o"),
    (11, "priority", "o"),
    (10, "correlation_id", "s"),
    (9, "reply_to", "s"),
    (8, "expiration", "s"),
    (7, "message_id", "s"),
    (6, "timestamp", "T"),
    (5, "type", "s"),
    (4, "user_id", "s"),
    (3, "app_id", "s"),
    (2, "cluster_id", "s"),
)
"""The properties of class basic in the order of their flags: bit, name, kind (string, table, octet, time)."""

JSON: Final = b"\x10application/json"
DEEPEST: Final = 64
"""Tables and arrays may be nested so deep; deeper ones are garbage, or meant to do harm."""

_NUMBERS: Final = {ord(kind): Struct(f">{code}") for kind, code in zip("bBsuIiLlfd", "bBhHiIqqfd", strict=True)}
_GARBAGE = (ValueError, IndexError, ArithmeticError, struct_error)
"""What reading garbage raises, here and in pamqp."""
_ACK = Struct(">BHIHHQBB")
_CONTENT = Struct(">BHIHHQH")


class Malformed(ValueError):
    """Bytes that are not what AMQP says they should be."""


class Timestamp(int):
    """A header of the kind time: seconds since 1970, as they came; a type of its own so that copies keep the kind."""


def short_bytes(raw: bytes) -> bytes:
    """Return a short string of at most 255 bytes; raises Malformed for a longer one."""
    if len(raw) > 255:
        raise Malformed(f"{raw[:40]!r}… has {len(raw)} bytes, AMQP allows 255 here")
    return bytes((len(raw),)) + raw


def short(value: str) -> bytes:
    """Return a short string."""
    return short_bytes(value.encode())


def header(name: str) -> bytes:
    """Return the constant part of a string header: its name and kind."""
    return short(name) + b"S"


def text(prefix: bytes, value: str) -> bytes:
    """Return a string header whose constant part was made by `header`."""
    raw = value.encode()
    return prefix + U32.pack(len(raw)) + raw


def field(name: str, value: Any) -> bytes:
    """Return a header of any kind that `properties` reads; raises Malformed for one that AMQP has no kind for."""
    if type(value) is str:
        return text(header(name), value)
    return short(name) + _value_bytes(value)


def _value_bytes(value: Any) -> bytes:
    match value:
        case str():
            return text(b"S", value)
        case bytes() | bytearray():
            return (b"x" if isinstance(value, bytearray) else b"S") + U32.pack(len(value)) + value
        case bool():
            return b"t\x01" if value else b"t\x00"
        case Timestamp():
            return b"T" + U64.pack(value)
        case int() if -1 << 31 <= value < 1 << 31:
            return b"I" + _NUMBERS[ord("I")].pack(value)
        case int() if -1 << 63 <= value < 1 << 63:
            return b"l" + _NUMBERS[ord("l")].pack(value)
        case float():
            return b"d" + _NUMBERS[ord("d")].pack(value)
        case Decimal():
            return b"D" + pamqp_encode.decimal(value)
        case None:
            return b"V"
        case dict():
            inner = b"".join(field(name, item) for name, item in value.items())
            return b"F" + U32.pack(len(inner)) + inner
        case list():
            inner = b"".join(map(_value_bytes, value))
            return b"A" + U32.pack(len(inner)) + inner
    raise Malformed(f"a header cannot be {type(value).__name__} {str(value)[:40]!r}: AMQP has no kind for it")


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return the frame of Basic.Ack."""
    return _ACK.pack(METHOD, channel, 13, 60, 80, tag, multiple, END)


def nack(channel: int, tag: int, *, requeue: bool) -> bytes:
    """Return the frame of Basic.Nack for one tag."""
    return _ACK.pack(METHOD, channel, 13, 60, 120, tag, requeue << 1, END)


def publish_method(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """Return the frame of Basic.Publish."""
    payload = b"\x00\x3c\x00\x28\x00\x00" + short(exchange) + short(key) + (b"\x01" if mandatory else b"\x00")
    return HEAD.pack(METHOD, channel, len(payload)) + payload + END_OCTET


def content(channel: int, flags: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the header and body frames of a message; raises Malformed where the header is over a frame."""
    size = len(body)
    if len(properties) + 22 > frame_max:
        raise Malformed(f"headers and properties have {len(properties):,} bytes, a frame takes {frame_max - 22:,}")
    top = _CONTENT.pack(HEADER, channel, 14 + len(properties), 60, 0, size, flags) + properties + END_OCTET
    if not size:
        return top
    step = frame_max - 8
    if size <= step:
        return b"".join((top, HEAD.pack(BODY, channel, size), body, END_OCTET))
    parts = [top]
    for at in range(0, size, step):
        piece = body[at : at + step]
        parts += (HEAD.pack(BODY, channel, len(piece)), piece, END_OCTET)
    return b"".join(parts)


def delivered(method: bytes) -> tuple[int, bool, str, str]:
    """Read a Basic.Deliver: delivery tag, redelivered, exchange, routing key."""
    at = 5 + method[4]
    tag, redelivered = TAG.unpack_from(method, at)
    at += 9
    exchange, at = _short(method, at)
    key, at = _short(method, at)
    return tag, bool(redelivered & 1), exchange, key


def redelivered(method: bytes) -> bool:
    """Read of a Basic.Deliver only whether it came before."""
    return method[13 + method[4]] & 1 == 1


def returned(method: bytes) -> tuple[str, str, str]:
    """Read a Basic.Return: reply text, exchange, routing key."""
    reply, at = _short(method, 6)
    exchange, at = _short(method, at)
    key, _ = _short(method, at)
    return reply, exchange, key


def _short(raw: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + raw[at]
    return _lenient(raw[at + 1 : end]), end


def _lenient(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # never longer than it came, so that a copy fits into 255 bytes again
        return raw.decode("utf-8", "replace").replace("\ufffd", "?")


def headers_alone(raw: bytes) -> dict[str, Any] | None:
    """Read the headers of a message of JSON without any other property; None where that cannot be told cheaply.

    Raises Malformed, as `properties` does.
    """
    flags = raw[12:14]
    # content type and headers are there, and neither encoding nor reply-to, which nothing repeats
    if len(flags) < 2 or flags[0] & 0xE2 != 0xA0 or raw[14:31] != JSON or flags[1] & 1:
        return None
    try:
        end = 35 + U32.unpack_from(raw, 31)[0]
        if end > len(raw):
            raise Malformed("the table of headers is longer than its frame")
        return _table(raw, 35, end)
    except Malformed:
        raise
    except _GARBAGE as error:
        raise Malformed(f"properties cannot be read: {error!r}") from error


def properties(raw: bytes) -> dict[str, Any]:
    """Read a content header's payload: the properties that are there. Raises Malformed, and nothing else."""
    try:
        found: dict[str, Any] = {}
        at = 14
        for name, kind in _present(U16.unpack_from(raw, 12)[0]):
            if kind == "s":
                end = at + 1 + raw[at]
                found[name] = _lenient(raw[at + 1 : end])
                at = end
            elif kind == "t":
                end = at + 4 + U32.unpack_from(raw, at)[0]
                if end > len(raw):
                    raise Malformed("the table of headers is longer than its frame")
                found[name] = _table(raw, at + 4, end)
                at = end
            elif kind == "o":
                found[name] = raw[at]
                at += 1
            else:
                found[name] = U64.unpack_from(raw, at)[0]
                at += 8
        if at > len(raw):
            raise Malformed("the properties are longer than their frame")
        return found
    except Malformed:
        raise
    except _GARBAGE as error:
        raise Malformed(f"properties cannot be read: {error!r}") from error


def first(raw: bytes, header: bytes) -> Any:
    """Return the first header of a name; where a sender repeats it, `properties` has the last.

    What a broker writes stands first. Raises Malformed where there is none.
    """
    at = 14
    for _, kind in _present(U16.unpack_from(raw, 12)[0]):
        if kind == "t":
            break
        at += 1 + raw[at]
    at, end = at + 4, at + 4 + U32.unpack_from(raw, at)[0]
    while at < end:
        name, value_at = raw[at + 1 : at + 1 + raw[at]], at + 1 + raw[at]
        value, at = _value(raw, value_at, end, 0)
        if name == header:
            return value
    raise Malformed(f"there is no header {header.decode()}")


@lru_cache(maxsize=1024)
def _present(flags: int) -> tuple[tuple[str, str], ...]:
    if flags & 1:
        raise Malformed("there is more than one word of property flags")
    return tuple((name, kind) for bit, name, kind in PROPERTIES if flags >> bit & 1)


def _table(raw: bytes, at: int, end: int, depth: int = 0) -> dict[str, Any]:
    if depth > DEEPEST:
        raise Malformed(f"headers are nested more than {DEEPEST} deep")
    found: dict[str, Any] = {}
    size_at = U32.unpack_from
    while at < end:
        value_at = at + 1 + raw[at]
        name = _lenient(raw[at + 1 : value_at])
        if raw[value_at] == 83:
            at = value_at + 5 + size_at(raw, value_at + 1)[0]
            value = raw[value_at + 5 : at]
            try:
                found[name] = value.decode()
            except UnicodeDecodeError:
                found[name] = value
        else:
            found[name], at = _value(raw, value_at, end, depth)
    if at != end:
        raise Malformed("a header is longer than the table that it is in")
    return found


def _value(raw: bytes, at: int, end: int, depth: int) -> tuple[Any, int]:
    kind, at = raw[at], at + 1
    if (number := _NUMBERS.get(kind)) is not None:
        return number.unpack_from(raw, at)[0], at + number.size
    match chr(kind):
        case "t":
            return raw[at] != 0, at + 1
        case "T":
            return Timestamp(U64.unpack_from(raw, at)[0]), at + 8
        case "V" | "\0":
            return None, at
        case "D":
            return pamqp_decode.decimal(raw[at : at + 5])[1], at + 5
        case "S" | "x" | "F" | "A":
            inner, stop = at + 4, at + 4 + U32.unpack_from(raw, at)[0]
            if stop > end:
                raise Malformed("a header is longer than the table that it is in")
            if kind == ord("F"):
                return _table(raw, inner, stop, depth + 1), stop
            if kind == ord("A"):
                return _array(raw, inner, stop, depth + 1), stop
            if kind == ord("x"):
                return bytearray(raw[inner:stop]), stop
            return _text(raw[inner:stop]), stop
    raise Malformed(f"a header is of the kind {chr(kind)!r}, which AMQP does not know")


def _array(raw: bytes, at: int, end: int, depth: int) -> list[Any]:
    if depth > DEEPEST:
        raise Malformed(f"headers are nested more than {DEEPEST} deep")
    found = []
    while at < end:
        value, at = _value(raw, at, end, depth)
        found.append(value)
    if at != end:
        raise Malformed("a value is longer than the array that it is in")
    return found


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
