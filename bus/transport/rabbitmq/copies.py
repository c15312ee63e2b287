"""Copies of a delivery: retries, dead letters and replays. A copy never changes what a message is.

It keeps body, id and application headers. What would change what the broker does with it (`expiration`, `CC`, `BCC`,
`user_id` and every `x-` header: each of them was seen to break a retry) moves to `tidegate-original-…`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from ...message import ATTEMPT, FIRST_FAILED_AT, MADE_ID, ORIGINAL_PREFIX, ROUTED, ROUTING_KEY, WAITS_SINCE, Message
from ...outcome import Failure, Retry
from . import wire
from .delay import is_cascade
from .envelope import BROKERS, MOVED


RECORD: Final = "tidegate-failure-"
"""What the headers of a failure record start with."""
NESTED: Final = "tidegate-nested"
"""JSON of the original headers that are tables or arrays, which streams drop."""
WRAPPED: Final = "tidegate-wrapped"
"""Says that the body holds the original's content header and body."""
PROGRESS: Final = (ATTEMPT, FIRST_FAILED_AT, WAITS_SINCE, ROUTED, NESTED, "x-stream-offset")
MOST_COPIED: Final = 64_000
"""Bytes of properties that a dead letter may have: 140 kB were seen to close the connection."""
MOVED_PROPERTIES: Final = ("expiration", "user_id")


def retry(
    raw: bytes, message: Message, routing_key: str, outcome: Retry, added: Mapping[str, Any]
) -> tuple[int, bytes]:
    """Return flags and properties of a retry copy; `added` headers lead it through the delay cascade."""
    progress = {ATTEMPT: outcome.attempt, FIRST_FAILED_AT: outcome.failure.first_failed_at.isoformat()}
    if outcome.waits_since is not None:
        progress[WAITS_SINCE] = outcome.waits_since.isoformat()
    return _copy(raw, message, routing_key, {**progress, **added})


def dead_letter(
    raw: bytes, body: bytes, message: Message, routing_key: str, failure: Failure
) -> tuple[int, bytes, bytes]:
    """Return flags, properties and body of a dead letter: the original and the failure record, in scalar headers.

    Headers that would not fit beside the record are kept whole in a wrapper body.
    """
    record = {RECORD + name.replace("_", "-"): value for name, value in record_of(failure).items()}
    properties = _safe(raw)
    nested = {name: value for name, value in properties.get("headers", {}).items() if isinstance(value, dict | list)}
    beside = {NESTED: _json(nested)} if nested else {}
    flags, copied = _copy(raw, message, routing_key, record | beside)
    if len(copied) <= MOST_COPIED:
        return flags, copied, body
    whole = _json({"header": b64encode(raw).decode(), "body": b64encode(body).decode()})
    told = {**record, WRAPPED: True, ROUTING_KEY: routing_key, MADE_ID: message.id}
    return *encode({"headers": told, "message_id": message.id, "delivery_mode": 2}), whole.encode()


def unwrapped(headers: Mapping[str, Any], raw: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return the content header and the body of the original that a dead letter keeps."""
    if not headers.get(WRAPPED):
        return raw, body
    import orjson

    whole = orjson.loads(body)
    return b64decode(whole["header"]), b64decode(whole["body"])


def replay(raw: bytes, headers: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return flags and properties of a replayed letter, what it was before it failed; `headers` are the letter's."""
    properties = _safe(raw)
    original = properties.get("headers", {})
    kept = {name: value for name, value in original.items() if not (name.startswith(RECORD) or name in PROGRESS)}
    kept |= {name: headers[name] for name in (ROUTING_KEY, MADE_ID) if name in headers}
    if isinstance(nested := headers.get(NESTED), str):
        import orjson

        kept |= orjson.loads(nested)
    return encode({**properties, "headers": _movable(kept), "delivery_mode": 2})


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
    headers = dict(properties.get("headers", {}))
    headers.setdefault(ROUTING_KEY, routing_key)
    if message.id_made_up:
        headers[MADE_ID] = message.id
    for name in MOVED_PROPERTIES:
        if (value := properties.pop(name, None)) is not None:
            headers[ORIGINAL_PREFIX + name] = value
    # an earlier failure record or trip through the delay cascade says nothing of this copy
    kept = {name: value for name, value in headers.items() if not _of_earlier(name)}
    return encode({**properties, "headers": _movable({**kept, **added}), "delivery_mode": 2})


def _of_earlier(name: str) -> bool:
    return name.startswith(RECORD) or is_cascade(name) or name in (ROUTED, WAITS_SINCE)


def _movable(headers: Mapping[str, Any]) -> dict[str, Any]:
    moved = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower.startswith(BROKERS):
            continue
        moved[ORIGINAL_PREFIX + name if lower.startswith("x-") or lower in MOVED else name] = value
    return moved


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
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return default
