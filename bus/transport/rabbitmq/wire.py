"""The frames of AMQP 0-9-1 that travel once per message, as bytes; pure. Everything else is left to pamqp.

Layouts: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, sections 4.2.3 to 4.2.6.
"""

from __future__ import annotations

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
I32: Final = Struct(">i")
I64: Final = Struct(">q")
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
"""The properties of class basic in the order of their flags: bit, name, kind."""

JSON: Final = b"\x10application/json"
BROKEN: Final = (ValueError, IndexError, TypeError, OverflowError, KeyError, RecursionError, struct_error)
"""What reading garbage raises, here and in pamqp."""

_ACK = Struct(">BHIHHQBB")
_CONTENT = Struct(">BHIHHQH")


class Malformed(ValueError):
    """Bytes that are not what AMQP says they should be."""


def short_bytes(raw: bytes) -> bytes:
    """Return a short string of at most 255 bytes; raises Malformed for a longer one."""
    if len(raw) > 255:  # noqa: PLR2004
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
    """Return a header of any kind; the kinds that are rare are pamqp's."""
    if type(value) is str:
        return text(header(name), value)
    return short(name) + pamqp_encode.encode_table_value(bytearray(value) if type(value) is bytes else value)


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


def returned(method: bytes) -> tuple[str, str, str]:
    """Read a Basic.Return: reply text, exchange, routing key."""
    reply, at = _short(method, 6)
    exchange, at = _short(method, at)
    key, _ = _short(method, at)
    return reply, exchange, key


def _short(raw: bytes, at: int) -> tuple[str, int]:
    size = raw[at]
    return raw[at + 1 : at + 1 + size].decode("utf-8", "replace"), at + 1 + size


def headers_alone(raw: bytes) -> dict[str, Any] | None:
    """Read the headers of a message of JSON without any other property; None where that cannot be told cheaply.

    Raises Malformed, as `properties` does.
    """
    flags = raw[12:14]
    # content type and headers are there, and neither encoding nor reply-to, which nothing repeats
    if len(flags) < 2 or flags[0] & 0xE2 != 0xA0 or raw[14:31] != JSON or flags[1] & 1:  # noqa: PLR2004
        return None
    try:
        end = 35 + U32.unpack_from(raw, 31)[0]
        if end > len(raw):
            raise Malformed("the table of headers is longer than its frame")
        return _table(raw, 35, end)
    except Malformed:
        raise
    except BROKEN as error:
        raise Malformed(f"headers cannot be read: {error!r}") from error


def properties(raw: bytes) -> dict[str, Any]:
    """Read a content header's payload: the properties that are there. Raises Malformed, and nothing else."""
    try:
        return _properties(raw)
    except Malformed:
        raise
    except BROKEN as error:
        raise Malformed(f"properties cannot be read: {error!r}") from error


def _properties(raw: bytes) -> dict[str, Any]:
    flags = U16.unpack_from(raw, 12)[0]
    if flags & 1:
        raise Malformed("there is more than one word of property flags")
    at = 14
    found: dict[str, Any] = {}
    for bit, name, kind in PROPERTIES:
        if not flags >> bit & 1:
            continue
        if kind == "s":
            found[name], at = _short(raw, at)
        elif kind == "t":
            end = at + 4 + U32.unpack_from(raw, at)[0]
            if end > len(raw):
                raise Malformed("the table of headers is longer than its frame")
            found[name], at = _table(raw, at + 4, end), end
        elif kind == "o":
            found[name] = raw[at]
            at += 1
        else:
            found[name] = U64.unpack_from(raw, at)[0]
            at += 8
    if at > len(raw):
        raise Malformed("the properties are longer than their frame")
    return found


def _table(raw: bytes, at: int, end: int) -> dict[str, Any]:
    """Read a table of headers. Strings, whole numbers, booleans and times here; the rest is pamqp's."""
    found: dict[str, Any] = {}
    while at < end:
        size = raw[at]
        name = raw[at + 1 : at + 1 + size].decode("utf-8", "replace")
        at += 1 + size
        kind = raw[at]
        at += 1
        if kind == 83:  # noqa: PLR2004 - S
            size = U32.unpack_from(raw, at)[0]
            at += 4
            value = raw[at : at + size]
            at += size
            try:
                found[name] = value.decode()
            except UnicodeDecodeError:
                found[name] = value
        elif kind == 73:  # noqa: PLR2004 - I
            found[name] = I32.unpack_from(raw, at)[0]
            at += 4
        elif kind == 108:  # noqa: PLR2004 - l
            found[name] = I64.unpack_from(raw, at)[0]
            at += 8
        elif kind == 116:  # noqa: PLR2004 - t
            found[name] = raw[at] != 0
            at += 1
        elif kind == 84:  # noqa: PLR2004 - T
            found[name] = U64.unpack_from(raw, at)[0]
            at += 8
        else:
            used, found[name] = pamqp_decode.embedded_value(raw[at - 1 : end])
            at += used - 1
    if at != end:
        raise Malformed("a header is longer than the table that it is in")
    return found
