"""Copies of a delivery: retries, dead letters and replays. A copy never changes what a message is.

It keeps body, id and application headers. What would change what the broker does with it (`expiration`, `CC`, `BCC`,
`user_id` and every `x-` header: each of them was seen to break a retry) moves to `tidegate-original-…`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Final
from urllib.parse import quote

from ...message import (
    ATTEMPT,
    FIRST_FAILED_AT,
    HOPS,
    MADE_ID,
    ORIGINAL_PREFIX,
    REPLY_TO,
    ROUTED,
    ROUTING_KEY,
    WAITS_SINCE,
    WANTS,
    Message,
)
from ...outcome import Failure, Retry
from . import wire
from .envelope import ATTRIBUTES, BROKERS, DELIVERY_COUNT, DIRECT_REPLIES, MOVED, MOVED_PROPERTIES, Arrived


RECORD: Final = "tidegate-failure-"
"""What the headers of a failure record start with."""
NESTED: Final = "tidegate-nested"
"""JSON of the original headers that are tables or arrays, which streams drop."""
WRAPPED: Final = "tidegate-wrapped"
"""The original's content header, in base64; or its length in bytes, where it stands in front of the body."""
STREAM_OFFSET: Final = "x-stream-offset"
OF_STREAMS: Final = "tidegate-letter"
"""What the headers begin with that only streams of dead letters have."""
REPLAY: Final = "tidegate-letter-replay"
"""Tells one replay of a message from the next, where the broker, which keeps no time, dead-letters it again."""
OWN: Final = "tidegate-"
LASTING: Final = (HOPS, ROUTING_KEY, MADE_ID, REPLAY, WANTS, REPLY_TO)
"""Headers of ours that belong to the message itself; every other is of one copy, or forged."""
MOST_COPIED: Final = 64_000
"""Bytes of properties that a dead letter may have: 140 kB were seen to close the connection."""
ROOM: Final = 4_000
"""Bytes that a dead letter may grow by on its way from one stream into another."""
LONGEST_NAME: Final = 255
MOST_MOVED: Final = 100
"""Headers that are moved for their `x-` alone; nobody's broker knows more, and each has a longer name then."""
STREAMS: Final = ("x-amqp-", "x-basic-", "x-stream-")
"""Headers that a stream takes for its own; over one of a kind that it does not expect, 4.x crashes."""
COUNTS: Final = (DELIVERY_COUNT, "x-acquired-count")
"""Headers that the broker adds as it hands a message out."""
AMQP_10: Final = "amqp-1.0"
"""A type property that makes a stream take the body for AMQP 1.0, and crash whoever reads it."""
HARMFUL: Final = {"type": AMQP_10, "reply_to": DIRECT_REPLIES}
"""Properties of which only this value would change what the broker does."""
KEPT: Final = frozenset(name for _, name, _ in wire.PROPERTIES) - {"cluster_id"}
"""Properties that a stream keeps."""
LONGEST_REPLY_TO: Final = 240
"""Bytes of a quoted reply-to that a stream gives back: 4.3 makes an address of it, which may grow too long."""
LATEST: Final = 1 << 53
"""Seconds since 1970 that a stream, which counts milliseconds, can tell."""


def retry(
    raw: bytes, message: Message, routing_key: str, outcome: Retry, added: Mapping[str, Any]
) -> tuple[int, bytes]:
    """Return flags and properties of a retry copy; `added` headers lead it through the delay cascade."""
    progress = {ATTEMPT: outcome.attempt, FIRST_FAILED_AT: outcome.failure.first_failed_at.isoformat()}
    if outcome.waits_since is not None:
        progress[WAITS_SINCE] = outcome.waits_since.isoformat()
    return _copy(raw, message, routing_key, {**progress, **added})


def moved(raw: bytes, arrived: Arrived, *, routed: bool) -> tuple[int, bytes]:
    """Return flags and properties of a copy that stands for the original, with as many attempts and as old failures."""
    progress: dict[str, Any] = {ATTEMPT: arrived.attempt} if arrived.attempt > 1 else {}
    for name, moment in ((FIRST_FAILED_AT, arrived.first_failed_at), (WAITS_SINCE, arrived.waits_since)):
        if moment is not None:
            progress[name] = moment.isoformat()
    if routed:
        progress[ROUTED] = True
    return _copy(raw, arrived.message, arrived.routing_key, progress)


def dead_letter(
    raw: bytes, body: bytes, message: Message, routing_key: str, failure: Failure
) -> tuple[int, bytes, bytes]:
    """Return flags, properties and body of a dead letter: the original and the failure record, in scalar headers.

    Headers that a stream cannot keep, or that would not fit beside the record, are wrapped.
    """
    record = {RECORD + name.replace("_", "-"): value for name, value in record_of(failure).items()}
    if (beside := _beside(raw)) is not None:
        flags, copied = _copy(raw, message, routing_key, record | beside)
        if len(copied) <= MOST_COPIED:
            return flags, copied, body
    made = {MADE_ID: message.id} if message.id_made_up else {}
    return _wrapped(raw, body, message.id, {**record, **made, ROUTING_KEY: routing_key})


def _wrapped(raw: bytes, body: bytes, id: str, told: Mapping[str, Any]) -> tuple[int, bytes, bytes]:
    """Return flags, properties and body that keep an original as it was, to the byte.

    The body grows only where there is no room among the headers: the broker took it as it is, but may not take more.
    """
    kept = {"message_id": id, "delivery_mode": 2}
    flags, properties = encode({**kept, "headers": {**told, WRAPPED: b64encode(raw).decode()}})
    if len(properties) <= MOST_COPIED:
        return flags, properties, body
    return *encode({**kept, "headers": {**told, WRAPPED: len(raw)}}), raw + body


def unwrapped(headers: Mapping[str, Any], raw: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return the content header and the body of the original that a dead letter keeps."""
    match headers.get(WRAPPED):
        case str(encoded):
            try:
                return b64decode(encoded, validate=True), body
            except ValueError:
                pass  # somebody else's header
        case int(size) if 1 < size <= len(body):
            return body[:size], body[size:]
    return raw, body


def streamable(raw: bytes) -> bool:
    """Tell whether the broker may put it into a stream by itself, and neither a header nor a reader is lost."""
    headers = _safe(raw).get("headers", {})
    theirs = [name for name in headers if name not in COUNTS]
    harmful = any(name.lower().startswith("x-") or name.lower() in MOVED for name in theirs)
    return len(raw) <= MOST_COPIED and not harmful and _beside(raw) == {}


def replay(raw: bytes, headers: Mapping[str, Any], token: str) -> tuple[int, bytes]:
    """Return flags and properties of a replayed letter, what it was before it failed; `headers` are the letter's.

    The token tells this replay from others.
    """
    properties = _safe(raw)
    original = properties.get("headers", {})
    kept = {name: value for name, value in original.items() if _lasts(name)}
    if isinstance(nested := headers.get(NESTED), str):
        import orjson

        try:
            kept |= orjson.loads(nested)
        except (ValueError, TypeError):
            pass  # somebody else's header
    kept |= {name: headers[name] for name in (ROUTING_KEY, MADE_ID) if name in headers}
    # 4.x keeps the expiration of what it gave up on for it
    kept |= _moved_aside(properties)
    kept[REPLAY] = token
    return encode({**properties, "headers": _movable(kept), "delivery_mode": 2})


def replayed(raw: bytes) -> str:
    """Return the token of the replay that a message comes from; empty where it comes from none."""
    token = _safe(raw).get("headers", {}).get(REPLAY) if REPLAY.encode() in raw else None
    return token if isinstance(token, str) else ""


def carried(
    raw: bytes, body: bytes, message: Message, failure: Failure, added: Mapping[str, Any]
) -> tuple[int, bytes, bytes]:
    """Return flags, properties and body of a dead letter that goes from one stream into another, as it is.

    `raw` and `body` are the entry's own. `added` headers say what the streams know of it.
    """
    properties = _safe(raw)
    headers = properties.get("headers", {})
    record = {RECORD + name.replace("_", "-"): value for name, value in record_of(failure).items()}
    made = {MADE_ID: message.id} if message.id_made_up else {}
    left_out = (RECORD, OF_STREAMS, STREAM_OFFSET)
    kept = {name: value for name, value in headers.items() if not name.startswith(left_out)}
    kept |= _moved_aside(properties)
    nested = {name: value for name, value in kept.items() if isinstance(value, dict | list)}
    beside = {NESTED: _json(nested)} if nested else {}
    told = {**_movable({**kept, **beside}), **record, **made, **added}
    flags, copied = encode({**properties, "headers": told, "delivery_mode": 2})
    if len(copied) <= MOST_COPIED + ROOM:
        return flags, copied, body
    key = {name: headers[name] for name in (ROUTING_KEY,) if name in headers}
    return _wrapped(raw, body, message.id, {**record, **key, **added, MADE_ID: message.id})


def record_of(failure: Failure) -> dict[str, str]:
    """Return the failure as texts, without the live exception."""
    return {
        "service": failure.service,
        "handler": failure.handler,
        "reason": failure.reason,
        "error_type": failure.error_type,
        "error": failure.error,
        "traceback": failure.traceback,
        "attempts": str(failure.attempts),
        "first_failed_at": failure.first_failed_at.isoformat(),
        "last_failed_at": failure.last_failed_at.isoformat(),
        "worker": failure.worker,
    }


def encode(properties: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return flags and bytes of any properties; the slow way, for what is rare."""
    flags, parts = 0, []
    for bit, name, kind in wire.PROPERTIES:
        value = properties.get(name)
        if value is None or (name == "headers" and not value):
            continue
        flags |= 1 << bit
        if kind == "s":
            parts.append(wire.short_bytes(str(value).encode()[:255]))
        elif kind == "t":
            table = b"".join(wire.field(key, item) for key, item in value.items())
            parts.append(wire.U32.pack(len(table)) + table)
        elif kind == "o":
            parts.append(bytes((value,)))
        else:
            parts.append(wire.U64.pack(value))
    return flags, b"".join(parts)


def _copy(raw: bytes, message: Message, routing_key: str, added: Mapping[str, Any]) -> tuple[int, bytes]:
    properties = _safe(raw)
    # an earlier failure record or trip through the delay cascade says nothing of this copy
    headers = {name: value for name, value in properties.get("headers", {}).items() if _lasts(name)}
    headers[ROUTING_KEY] = routing_key
    headers.pop(MADE_ID, None)
    if message.id_made_up:
        headers[MADE_ID] = message.id
    headers |= _moved_aside(properties)
    return encode({**properties, "headers": _movable({**headers, **added}), "delivery_mode": 2})


def _moved_aside(properties: dict[str, Any]) -> dict[str, Any]:
    """Take the properties that would change what the broker does, and return them as headers."""
    harmful = [n for n in MOVED_PROPERTIES if n in properties and properties[n] == HARMFUL.get(n, properties[n])]
    return {ORIGINAL_PREFIX + name: properties.pop(name) for name in harmful}


def _lasts(name: str) -> bool:
    return not name.startswith(OWN) or name in LASTING or name.startswith(ORIGINAL_PREFIX)


def _movable(headers: Mapping[str, Any]) -> dict[str, Any]:
    moved: dict[str, Any] = {}
    left = MOST_MOVED
    for name, value in headers.items():
        if name.startswith(BROKERS):
            continue
        lower, aside = name.lower(), ORIGINAL_PREFIX + name
        # a name that is too long to be moved means nothing to any broker
        fits = len(aside.encode()) <= LONGEST_NAME
        harmful = lower in MOVED or lower.startswith(STREAMS)
        if isinstance(value, Decimal):
            # a stream, where a retry ends whose handler is gone, crashes what dead-letters one; it drops arrays
            if fits and aside not in headers:
                moved[aside] = [value]
            continue
        if fits and not harmful and left and lower.startswith("x-"):
            harmful, left = True, left - 1
        if fits and harmful:
            moved[aside] = value
        elif not (lower.startswith("x-") and _has_decimal(value)):  # of such names, 4.x keeps arrays and tables too
            # what is there by its own name counts, and not what a stranger set aside by that name
            moved.setdefault(name, value)
    return moved


def _has_decimal(value: Any) -> bool:
    """Tell whether a decimal is in it, at any depth."""
    if isinstance(value, dict):
        return any(map(_has_decimal, value.values()))
    if isinstance(value, list):
        return any(map(_has_decimal, value))
    return isinstance(value, Decimal)


def _beside(raw: bytes) -> dict[str, str] | None:
    """Return the headers that streams drop as a header of JSON; None where a stream cannot keep the original."""
    try:
        properties = wire.properties(raw)
    except wire.Malformed:
        return None
    headers = properties.get("headers", {})
    odd = (
        not KEPT.issuperset(properties)
        or properties.get("type") == AMQP_10
        or properties.get("timestamp", 0) > LATEST
        or len(quote(properties.get("reply_to", ""), safe="", errors="replace")) > LONGEST_REPLY_TO
    )
    if odd or any(isinstance(value, Decimal) for value in headers.values()):
        return None
    nested = {name: value for name, value in headers.items() if isinstance(value, dict | list) and _lasts(name)}
    # an attribute may stand there under several names: which one counts depends on all that was there
    if not _is_json(nested) or not ATTRIBUTES.keys().isdisjoint(nested):
        return None
    return {NESTED: _json(nested)} if nested else {}


def _is_json(value: Any) -> bool:
    """Tell whether JSON keeps the value and its kind."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or type(value) in (str, bool, int) or (type(value) is float and isfinite(value))


def _safe(raw: bytes) -> dict[str, Any]:
    try:
        return dict(wire.properties(raw))
    except wire.Malformed:
        return {}


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, default=repr).decode()


def moment(text: Any, default: datetime) -> datetime:
    """Return the time that a record tells, or the default where it tells none."""
    try:
        told = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return default
    return told if told.tzinfo else told.replace(tzinfo=UTC)
