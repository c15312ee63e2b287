"""Messages: events on the wire, with the attributes of CloudEvents 1.0; every header name, once.

Attribute names: https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/amqp-protocol-binding.md
and the extensions of that repository. Headers of our own start with `tidegate-`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

from . import clock
from .errors import ConfigurationError, MessageTooLarge
from .event import Event, encode, type_of
from .logs import CONTROL


CLOUDEVENTS_PREFIX: Final = "cloudEvents_"
"""What we write before a CloudEvents attribute."""
CLOUDEVENTS_PREFIXES: Final = ("cloudEvents_", "cloudEvents:", "ce-")
"""What we read: the AMQP binding's two, and the one that AMQP 0-9-1 products use."""

TRACE_HEADERS: Final = ("traceparent", "tracestate")
"""W3C trace context, written plain."""

ATTEMPT: Final = "tidegate-attempt"
"""Failed runs of this message by this handler so far, plus one; on retry copies only."""
FIRST_FAILED_AT: Final = "tidegate-first-failed-at"
"""RFC 3339 time of the first failure; on retry copies and dead letters."""
WAITS_SINCE: Final = "tidegate-waits-since"
"""RFC 3339 time since which no worker of this handler could read it, while a deploy may be under way; on copies."""
HOPS: Final = "tidegate-hops"
"""How many handlers stand between this event and one that had no cause."""
ROUTING_KEY: Final = "tidegate-routing-key"
"""The original routing key; on copies."""
ROUTED: Final = "tidegate-routed"
"""That the topic exchange sent it to this handler by its routing key; on retry copies only."""
MADE_ID: Final = "tidegate-id"
"""The id that was made up for a message that came without one; on copies."""
WANTS: Final = "tidegate-wants"
"""The type of the event that a requester waits for; on its request, and on what handlers publish because of it."""
REPLY_TO: Final = "tidegate-reply-to"
"""Where the requester waits, on what handlers publish because of its request; the request has it as a property."""
ORIGINAL_PREFIX: Final = "tidegate-original-"
"""Properties and `x-` headers of the original that would change what the broker does with a copy."""

RESERVED_HEADERS: Final = ("cc", "bcc")
RESERVED_PREFIXES: Final = (*CLOUDEVENTS_PREFIXES, "tidegate-", "x-")
"""Names that an application may not use for headers of its own."""

DATASCHEMA: Final = "urn:tidegate:{type}:{version}"
JSON_CONTENT: Final = "application/json"
STRUCTURED: Final = "application/cloudevents"
"""What the content types of CloudEvents' structured mode begin with; what could be read of it has its data's own."""
MOST_PUBLISHED: Final = 32 * 1024
"""Bytes of headers that an event may have: the other half of what a copy carries is for the record of its failure."""
LONGEST_ID: Final = 255
"""Bytes that an id may have, so that it fits into the properties which plain clients look at."""
LONGEST_TRACE: Final = 1024
"""Bytes of a trace header that goes on to what a handler publishes; W3C allows half of it."""
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An event on the wire. `body` is what was published, byte for byte; `headers` are the application's own.

    Of an event in structured mode the body is its data; extensions of CloudEvents are headers by their bare names.
    """

    id: str
    type: str
    version: int | None
    source: str
    time: datetime
    body: bytes
    correlation_id: str | None = None
    causation_id: str | None = None
    hops: int = 0
    key: str | None = None
    subject: str | None = None
    expires: datetime | None = None
    reply_to: str | None = None
    """Where an answer is waited for, as it came: an address of the transport's, or whatever a stranger wrote."""
    wants: str | None = None
    """The type of the event that a requester of ours waits for; a stranger takes whatever is answered."""
    content_type: str = JSON_CONTENT
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    id_made_up: bool = False
    """The message came without an id of its own, so a redelivery cannot be told from another equal message."""
    header_bytes: int = field(default=0, compare=False)
    """Bytes of its headers and properties as it came, without what copies add; 0 where it was made here."""
    problems: tuple[str, ...] = ()
    """What was wrong with its headers and properties, in words; the body is not looked at here."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way out. `address` names one queue to send to instead of the topic exchange."""

    message: Message
    delay: timedelta = timedelta()
    required: bool = False
    address: str | None = None


@dataclass(slots=True)
class Ids:
    """Makes ids of 128 random bits; reseeds itself in a forked child, where ids would repeat otherwise."""

    _random: random.Random = field(default_factory=random.SystemRandom)
    _pid: int = 0

    def __call__(self) -> str:
        """Return a new id of 32 hexadecimal digits."""
        if self._pid != os.getpid():
            self._random, self._pid = random.Random(os.urandom(32)), os.getpid()
        return f"{self._random.getrandbits(128):032x}"


def derived_id(cause: Message, subscription: str, position: int, type: str) -> str:
    """Return the id of the event that a handler publishes: a repeated run publishes the same ids."""
    place = f"\n{subscription}\n{position}\n{type}".encode()
    return blake2b(unique(cause) + place, digest_size=16).hexdigest()


def unique(message: Message) -> bytes:
    """Return what tells a message from every other: its source and its id together, as CloudEvents has it."""
    return f"{len(message.source)} {message.source}{message.id}".encode("utf-8", "surrogatepass")


def check_id(id: str) -> str:
    """Return the id if a message may have it; raise ConfigurationError if not."""
    if not 0 < len(_bytes(id, "publish: id")) <= LONGEST_ID or CONTROL.search(id):
        raise ConfigurationError(
            f"publish: id={id[:60]!r} must have 1 to {LONGEST_ID} bytes, and no control characters among them"
        )
    return id


def check_address(queue: str) -> str:
    """Return the name if a queue may have it; raise ConfigurationError if not."""
    if not 0 < len(_bytes(queue, "publish: to")) <= LONGEST_ID:
        raise ConfigurationError(f"publish: to={queue[:60]!r} is no queue: a name has 1 to {LONGEST_ID} bytes")
    return queue


def _bytes(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{what} {text[:60]!r}: it has a lone surrogate, which is no character") from error
    except AttributeError:
        remedy = "" if isinstance(text, bytes) else ", such as str(…) of it"
        raise ConfigurationError(
            f"{what} {text!r}: it is of type {type(text).__name__}; give a string{remedy}"
        ) from None


def _short(id: str) -> str:
    """Return an id that fits, for a stranger's that does not: the same one each time."""
    raw = id.encode()
    return id if len(raw) <= LONGEST_ID else blake2b(raw, digest_size=16).hexdigest()


def wrap(
    event: Event,
    *,
    id: str,
    source: str,
    limit: int,
    cause: Message | None = None,
    headers: Mapping[str, str] | None = None,
) -> Message:
    """Return the event as a message; `limit` is the most bytes that its body may have.

    With a cause the correlation id, the trace and the hop count go on from it; without one the event is its own
    correlation id. What a request causes tells where its answer is waited for, up to the answer itself. Raises
    MessageTooLarge, and ConfigurationError for an event class without a type or a value that
    JSON cannot hold.
    """
    kind, version = named(event.__class__)
    try:
        body = encode(event)
    except ValueError as error:
        raise ConfigurationError(
            f"{kind}: JSON cannot hold it: {error}. Such a value needs another type, such as Base64Bytes for bytes."
        ) from error
    if len(body) > limit:
        raise MessageTooLarge(kind, len(body), limit)
    wants = cause.wants if cause is not None and cause.wants != kind else None
    return Message(
        id=id,
        type=kind,
        version=version,
        source=source,
        time=clock.now(),
        body=body,
        correlation_id=_short(cause.correlation_id or cause.id) if cause else id,
        causation_id=_short(cause.id) if cause else None,
        hops=cause.hops + 1 if cause else 0,
        reply_to=cause.reply_to if cause is not None and wants is not None else None,
        wants=wants,
        headers=_with_trace(_checked(headers, kind) if headers else None, cause),
    )


@lru_cache(maxsize=4096)
def named(cls: type[Event]) -> tuple[str, int]:
    """Return type and version of the events of a class; raises ConfigurationError where they cannot be published."""
    return type_of(cls), cls.__schema__.version


def _checked(headers: Mapping[str, str], kind: str) -> Mapping[str, str]:
    size = 0
    try:
        pairs = headers.items()
    except AttributeError:
        raise ConfigurationError(f'publish: headers={headers!r}; they are a dict, such as {{"tenant": "7"}}') from None
    for name, value in pairs:
        if not isinstance(name, str):
            raise ConfigurationError(f"header {name!r}: its name is a string")
        if name.lower() in RESERVED_HEADERS or name.startswith(RESERVED_PREFIXES):
            raise ConfigurationError(f"header {name!r}: that name means something to the broker, or to Tidegate itself")
        if not isinstance(value, str) or not 0 < len(_bytes(name, "header")) <= 255:
            raise ConfigurationError(f"header {name!r}: a name has 1 to 255 bytes, and a value is a string")
        size += len(_bytes(name, "header")) + len(_bytes(value, f"header {name!r}:"))
    if size > MOST_PUBLISHED:
        raise MessageTooLarge(kind, size, MOST_PUBLISHED, "headers")
    return MappingProxyType(dict(headers))


def _with_trace(headers: Mapping[str, str] | None, cause: Message | None) -> Mapping[str, str]:
    if cause is None or not cause.headers:
        return headers or _NO_HEADERS
    found = {name: cause.headers[name] for name in TRACE_HEADERS if name in cause.headers}
    trace = {name: value for name, value in found.items() if len(value.encode()) <= LONGEST_TRACE}
    return MappingProxyType({**trace, **(headers or {})}) if trace else headers or _NO_HEADERS
