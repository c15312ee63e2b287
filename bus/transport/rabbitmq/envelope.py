"""A message as AMQP properties and headers, and back. Reading is total: what is broken becomes a named problem.

CloudEvents 1.0, binary mode, with the names of its AMQP binding; the properties of AMQP 0-9-1 repeat what plain
clients look for. Structured mode, and messages that say nothing of themselves, are read too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from ...message import (
    ATTEMPT,
    CLOUDEVENTS_PREFIX,
    CLOUDEVENTS_PREFIXES,
    DATASCHEMA,
    FIRST_FAILED_AT,
    HOPS,
    JSON_CONTENT,
    MADE_ID,
    ORIGINAL_PREFIX,
    REPLY_TO,
    ROUTED,
    ROUTING_KEY,
    WAITS_SINCE,
    WANTS,
    Ids,
    Message,
)
from . import structured, wire


FLAGS: Final = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 10 | 1 << 7 | 1 << 6 | 1 << 5 | 1 << 3
"""Content type, headers, delivery mode, correlation id, message id, timestamp, type and app id are present."""
FLAGS_OF_REQUEST: Final = FLAGS | 1 << 9
"""The same, and reply-to."""
PERSISTENT: Final = b"\x02"
DELIVERY_COUNT: Final = "x-delivery-count"
ATTRIBUTES: Final = {
    prefix + name: name
    for prefix in CLOUDEVENTS_PREFIXES
    for name in (
        *("id", "source", "specversion", "type", "time", "dataschema", "datacontenttype", "subject"),
        *("correlationid", "causationid", "partitionkey", "expirytime"),
    )
}
"""The attributes that are read, by every name that they may have."""
KNOWN: Final = frozenset(ATTRIBUTES.values())
EXTENSION: Final = re.compile(r"(?:cloudEvents[_:]|ce-)?([a-z0-9]+)")
"""The name of an attribute, and of the header that it is in."""
BROKERS: Final = ("x-death", "x-first-death-", "x-last-death-", DELIVERY_COUNT, "x-acquired-count", "x-stream-offset")
"""Headers that the broker writes; a copy must not carry them back to it."""
NOT_APPLICATION: Final = (*CLOUDEVENTS_PREFIXES, "tidegate-", *BROKERS)
MOVED: Final = frozenset({"cc", "bcc"})
MOVED_PROPERTIES: Final = ("expiration", "user_id", "type", "reply_to")
"""Properties that a copy has among its headers, so that the broker does not look at them again."""

DIRECT_REPLIES: Final = "amq.rabbitmq.reply-to"
"""The consumer of the channel that publishes: the broker makes an address of it, and ends a channel that has none."""
LONGEST: Final = 255
"""Bytes that a property of AMQP may have; a stranger's headers are longer, and an edit of a letter sends them again."""
MOST_ADDED: Final = 4_096
"""Bytes of what copies carry beside the message's own headers, at most."""

_ID = wire.header(f"{CLOUDEVENTS_PREFIX}id")
_TIME = wire.header(f"{CLOUDEVENTS_PREFIX}time")
_CORRELATION = wire.header(f"{CLOUDEVENTS_PREFIX}correlationid")
_CAUSATION = wire.header(f"{CLOUDEVENTS_PREFIX}causationid")
_HOPS = wire.short(HOPS) + b"I"
_JSON = wire.short(JSON_CONTENT)
_make_id = Ids()


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a delivery carries: the message, and what earlier deliveries to this handler left with it."""

    message: Message
    attempt: int
    first_failed_at: datetime | None
    redelivered: int
    counted: bool
    """Whether the broker counted the redeliveries; where not, `redelivered` is 1 however often it came."""
    routed_by: str | None
    """The routing key by which an earlier delivery of it was routed to this handler; on retry copies."""
    waits_since: datetime | None
    """Since when it waits for a worker of another version; on retry copies."""
    routing_key: str
    """The key that it was published with, whatever the keys of its copies are."""


def encode(message: Message, added: Mapping[str, Any] | None = None, reply_to: bytes = b"") -> bytes:
    """Return the properties of a message, headers and `added` ones included, for a content header with `FLAGS`.

    With a `reply_to`, a short string, it is for one with `FLAGS_OF_REQUEST`.
    """
    constant, tail = _constant(message.type, message.version, message.source)
    id = message.id.encode()
    correlation = (message.correlation_id or message.id).encode()
    parts = [constant, wire.text(_ID, message.id), wire.text(_TIME, message.time.isoformat())]
    parts.append(_CORRELATION + wire.U32.pack(len(correlation)) + correlation)
    if message.causation_id is not None:
        parts.append(wire.text(_CAUSATION, message.causation_id))
    if message.hops:
        parts.append(_HOPS + wire.U32.pack(message.hops))
    if message.key is not None or message.subject is not None or message.expires is not None:
        parts += _rare(message)
    if message.wants is not None:
        parts += [wire.field(WANTS, message.wants)]
        parts += [] if message.reply_to is None else [wire.field(REPLY_TO, message.reply_to)]
    if message.headers:
        parts += [wire.field(name, value) for name, value in message.headers.items()]
    if added:
        parts += [wire.field(name, value) for name, value in added.items()]
    table = b"".join(parts)
    return b"".join(
        (
            _JSON if message.content_type == JSON_CONTENT else wire.short_bytes(_cut(message.content_type.encode())),
            wire.U32.pack(len(table)),
            table,
            PERSISTENT,
            wire.short_bytes(correlation if len(correlation) <= LONGEST else _cut(correlation)),
            reply_to,
            wire.short_bytes(id if len(id) <= LONGEST else _cut(id)),
            wire.U64.pack(max(int(message.time.timestamp()), 0)),
            tail,
        )
    )


@lru_cache(maxsize=4096)
def _constant(type: str, version: int | None, source: str) -> tuple[bytes, bytes]:
    attributes = {"source": source, "specversion": "1.0", "type": type}
    if version is not None:
        attributes["dataschema"] = DATASCHEMA.format(type=type, version=version)
    fields = (wire.field(CLOUDEVENTS_PREFIX + name, value) for name, value in attributes.items())
    return b"".join(fields), wire.short_bytes(_cut(type.encode())) + wire.short_bytes(_cut(source.encode()))


def _cut(text: bytes) -> bytes:
    """Return what of a text has room in a property, which only repeats what a header says in full."""
    return text if len(text) <= LONGEST else text[:LONGEST].decode(errors="ignore").encode()


def _rare(message: Message) -> list[bytes]:
    expires = message.expires.isoformat() if message.expires else None
    given = {"partitionkey": message.key, "subject": message.subject, "expirytime": expires}
    return [wire.field(CLOUDEVENTS_PREFIX + name, value) for name, value in given.items() if value is not None]


def decode(
    raw: bytes, body: bytes, routing_key: str, *, ours: bool, redelivered: bool = False, original: bool = False
) -> Arrived:
    """Read a delivery. `ours` says that it came back by an exchange of ours, so that its attempt counts.

    `redelivered` is what the broker's flag says: quorum queues count in a header, others only flag. `original` says
    that this is the key it was published with, so that a header that tells another is forged.
    """
    problems: list[str] = []
    properties, attributes, extensions, application = _read(raw, problems)
    headers: dict[str, Any] = properties.get("headers", {})
    if not attributes or "content_type" in properties:
        told = str(properties.get("content_type", ""))
        if (opened := structured.opened(told, body, problems, plain=not attributes)) is not None:
            attributes, body = opened
            properties["content_type"], extensions = attributes.get("datacontenttype"), _extensions(attributes)
    if extensions:
        application = extensions | application
    key = _original_key(headers, routing_key, original=original)
    id = _text(attributes.get("id")) or _text(properties.get("message_id"))
    reply_to, wants = _text(properties.get("reply_to")), headers.get(WANTS)
    if wants is not None:
        wants, reply_to = _bounded(wants), reply_to or _bounded(headers.get(REPLY_TO))
    message = Message(
        id=id or _bounded(headers.get(MADE_ID)) or _make_id(),
        type=_text(attributes.get("type")) or key,
        version=_version(attributes.get("dataschema"), _text(attributes.get("type"))),
        source=_text(attributes.get("source")) or _text(properties.get("app_id")) or "",
        time=_time(attributes.get("time"), properties, problems),
        body=body,
        correlation_id=_text(attributes.get("correlationid")) or _text(properties.get("correlation_id")),
        causation_id=_text(attributes.get("causationid")),
        hops=_whole(headers.get(HOPS), 0),
        key=_text(attributes.get("partitionkey")),
        subject=_text(attributes.get("subject")),
        expires=_moment("expirytime", attributes.get("expirytime"), problems),
        reply_to=reply_to,
        wants=wants,
        content_type=_text(properties.get("content_type")) or JSON_CONTENT,
        headers=application,
        id_made_up=id is None,
        # the same for a message and its copies
        header_bytes=max(len(raw) - MOST_ADDED, 0) if ROUTING_KEY in headers else len(raw),
        problems=tuple(problems),
    )
    return Arrived(
        message,
        attempt=max(_whole(headers.get(ATTEMPT), 1), 1) if ours else 1,
        first_failed_at=_moment(FIRST_FAILED_AT, headers.get(FIRST_FAILED_AT), problems) if ours else None,
        redelivered=max(_whole(headers.get(DELIVERY_COUNT), 1), 1) if redelivered else 0,
        counted=DELIVERY_COUNT in headers,
        routed_by=key if ours and headers.get(ROUTED) is True else None,
        waits_since=_moment(WAITS_SINCE, headers.get(WAITS_SINCE), problems) if ours else None,
        routing_key=key,
    )


def _read(raw: bytes, problems: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str], dict[str, str]]:
    """Return the properties, the CloudEvents attributes, their extensions, and the application's own headers."""
    properties: dict[str, Any] = {}
    try:
        # what the headers say stands in the properties once more, for plain clients: not read without need
        alone = wire.headers_alone(raw)
        properties = wire.properties(raw) if alone is None else {"headers": alone}
        attributes, extensions, application = _sorted(properties.get("headers", {}))
        if alone is not None and not ("id" in attributes and "type" in attributes and "time" in attributes):
            properties = wire.properties(raw)
    except wire.Malformed as error:
        problems.append(f"properties: {error}")
        return properties, {}, {}, {}
    return properties, attributes, extensions, application


def deliveries_before(method: bytes, raw: bytes) -> int:
    """Return how often a quorum queue handed the message out before; the count of a first delivery is forged."""
    if not wire.delivered(method)[1]:
        return 0
    try:
        return _whole(wire.properties(raw).get("headers", {}).get(DELIVERY_COUNT), 0)
    except wire.Malformed:
        return 0


def _sorted(headers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Return the CloudEvents attributes, extensions by their bare names, and the application's own headers.

    Of several names for one thing the same one counts whatever their order: RabbitMQ 3.10 hands the headers of what it
    has dead-lettered, as a delay does, out in another one.
    """
    attributes: dict[str, Any] = {}
    application: dict[str, str] = {}
    extensions: dict[str, str] = {}
    for name, value in headers.items():
        if (attribute := ATTRIBUTES.get(name)) is not None:
            if not isinstance(value, Decimal) and not (
                attribute in attributes and _yields(name, attribute, headers, _is_kept)
            ):
                attributes[attribute] = value
            continue
        if name.startswith(ORIGINAL_PREFIX):
            # what a copy moved aside has its own name again, as the first delivery had it; what still has it counts
            name = name[len(ORIGINAL_PREFIX) :]  # noqa: PLW2901
            if name in MOVED_PROPERTIES or name in application or name.startswith(NOT_APPLICATION):
                continue
        if name.startswith(NOT_APPLICATION):
            if (found := EXTENSION.fullmatch(name)) is not None and (text := _text(value)) is not None:
                bare = found[1]
                if not (bare in extensions and _yields(name, bare, headers, _text)):
                    extensions[bare] = text
        elif (text := value if isinstance(value, str) else _text(value)) is not None:
            application[name] = text
    return attributes, extensions, application


def _is_kept(value: Any) -> bool:
    """Tell whether copies keep a value of an attribute."""
    return not isinstance(value, Decimal)


def _yields(name: str, bare: str, headers: Mapping[str, Any], usable: Callable[[Any], object]) -> bool:
    """Tell whether a header by an earlier prefix says what this one does."""
    for prefix in CLOUDEVENTS_PREFIXES:
        earlier = prefix + bare
        if earlier == name:
            return False
        if earlier in headers and usable(headers[earlier]):
            return True
    return False


def _extensions(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes of an envelope that mean something to the application only, as headers."""
    named = ((name, _text(value)) for name, value in attributes.items() if name not in KNOWN)
    return {name: text for name, text in named if text is not None and EXTENSION.fullmatch(name)}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytearray):
        # clients of languages whose strings are bytes send text so
        try:
            return value.decode() or None
        except UnicodeDecodeError:
            return None
    return None


def _original_key(headers: Mapping[str, Any], routing_key: str, *, original: bool) -> str:
    told = None if original else _bounded(headers.get(ROUTING_KEY))
    return routing_key if told is None else told


def _bounded(value: Any) -> str | None:
    """Return what a header of ours tells, which is never long; what is, is forged."""
    return value if isinstance(value, str) and len(value.encode()) <= 255 else None


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else default


def _version(schema: Any, type: str | None) -> int | None:
    prefix = DATASCHEMA.format(type=type, version="")
    if isinstance(schema, str) and schema.startswith(prefix) and schema[len(prefix) :].isdecimal():
        return int(schema[len(prefix) : len(prefix) + 9])
    return None


def _time(value: Any, properties: Mapping[str, Any], problems: list[str]) -> datetime:
    sent = properties.get("timestamp")
    return _moment("time", value, problems) or _moment("timestamp", sent, problems) or datetime.fromtimestamp(0, UTC)


def _moment(name: str, value: Any, problems: list[str]) -> datetime | None:
    try:
        if value is None:
            return None
        if isinstance(value, str):
            read = datetime.fromisoformat(value)
        elif isinstance(value, int | float):
            # AMQP counts seconds, some clients milliseconds
            read = datetime.fromtimestamp(value / 1000 if abs(value) > 1 << 36 else value, UTC)
        else:
            read = value if isinstance(value, datetime) else datetime.fromisoformat(repr(value))
        return read if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        problems.append(f"{name}: {value!r} is no RFC 3339 time"[:200])
        return None
