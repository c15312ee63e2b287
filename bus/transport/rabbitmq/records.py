"""What an entry of a dead-letter stream tells: the message as it was, and why its handler, or the broker, gave up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple, get_args

from ...message import (
    ATTEMPT,
    CLOUDEVENTS_PREFIX,
    CLOUDEVENTS_PREFIXES,
    FIRST_FAILED_AT,
    MADE_ID,
    ROUTING_KEY,
    Message,
)
from ...outcome import Failure, Reason
from . import copies, envelope, wire
from .channel import Received
from .delay import PREFIX


ENTRY_KEY: Final = "tidegate-letter-entry-key"
"""The routing key by which a letter first came to a stream; on copies from one stream to another."""
FIRST_DEATH: Final = "x-first-death-queue"
ID: Final = f"{CLOUDEVENTS_PREFIX}id"
RARE: Final = frozenset({f"{prefix}id" for prefix in CLOUDEVENTS_PREFIXES} - {ID} | {copies.WRAPPED})
HANDLER, REASON, LAST_FAILED_AT, WORKER = (
    copies.RECORD + name for name in ("handler", "reason", "last-failed-at", "worker")
)
WHY: Final = "x-first-death-reason"
WAITED: Final = re.compile(rf"(?:^|\.)(?:(?P<cascade>{re.escape(PREFIX)})|retry\.)\d+$")
"""The queues in which retries wait: steps of the ladder, and levels of the cascade."""
BY_BROKER: Final = ("broker", "expired")
HINTS: Final = {
    "delivery_limit": ": it was handed out too often without an outcome",
    "rejected": ": it is too large for a copy with a record; the worker's log has the failure",
}
REASONS: Final = frozenset(get_args(Reason))


@dataclass(slots=True)
class Entry:
    """One entry of a generation's stream. `direct` says that a tool put it there, and not the fanout exchange.

    `nth` tells a message without an id from its equals; where nothing is said, its place in the stream does.
    """

    generation: int
    offset: int
    headers: dict[str, Any]
    received: Received
    key: str
    direct: bool
    nth: str = ""

    @property
    def first_key(self) -> str:
        """The routing key by which it first came to a stream."""
        return str(self.headers.get(ENTRY_KEY, self.key)) if self.direct else self.key

    @property
    def by_broker(self) -> bool:
        """Whether the broker gave up on it by itself: headers like a worker's record are a stranger's then."""
        return not self.direct and FIRST_DEATH in self.headers

    @property
    def told(self) -> dict[str, Any]:
        """The headers that say something of the letter, where a worker or a tool wrote them."""
        return {} if self.by_broker else self.headers

    @property
    def original(self) -> tuple[bytes, bytes]:
        """The content header and the body of what died."""
        return copies.unwrapped(self.told, self.received.header, self.received.body)


def read(entry: Entry, service: str, prefix: str) -> tuple[Message, Failure]:
    """Return the message as it was, and the record of its failure. Total: whatever is missing has a default.

    What named no type, and was given up by the broker, has an empty one: its routing key was lost.
    """
    raw, body = entry.original
    first_key = entry.first_key
    key = told if isinstance(told := entry.headers.get(ROUTING_KEY), str) else ""
    message = envelope.decode(raw, body, key, ours=False).message
    if message.id_made_up:
        made = entry.headers.get(MADE_ID)
        message = replace(message, id=made if isinstance(made, str) else _id_of(entry, body))
    return message, _failure(entry, service, first_key.removeprefix(prefix), message.time)


class Known(NamedTuple):
    """What all copies of one letter have in common, what all letters of its message and handler have; when, where."""

    key: bytes
    place: bytes
    failed_at: datetime
    worker: str


def known(entry: Entry, service: str, prefix: str) -> Known:
    """Return what a letter is known by; without reading all of it where its record is a worker's."""
    headers = entry.headers
    id, handler, at = headers.get(ID), headers.get(HANDLER), headers.get(LAST_FAILED_AT)
    place_of = entry.first_key.rpartition(".")[2]
    if (
        not entry.by_broker
        and (entry.direct or handler == place_of)
        and id
        and type(id) is type(handler) is type(at) is str
        and headers.keys().isdisjoint(RARE)
    ):
        try:
            failed_at = datetime.fromisoformat(at)
        except ValueError:
            pass  # read as a whole it has another time
        else:
            if headers.get(REASON) not in BY_BROKER and failed_at.tzinfo is not None and handler:
                place = f"{handler}\n{id}"
                key = f"{place}\n{failed_at.isoformat()}\n"
                return Known(digest(key), digest(place), failed_at, str(headers.get(WORKER, "")))
    message, failure = read(entry, service, prefix)
    return Known(*identity(message, failure, headers), failure.last_failed_at, failure.worker)


def identity(message: Message, failure: Failure, headers: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the key and the place of a letter, from all of it."""
    place, once = f"{failure.handler}\n{message.id}", ""
    if failure.reason in BY_BROKER:
        # strangers use an id more than once, and the broker tells no time of its own
        once = f"{headers.get(copies.REPLAY, '')}{blake2b(message.body, digest_size=12).hexdigest()}"
    return digest(f"{place}\n{failure.last_failed_at.isoformat()}\n{once}"), digest(place)


def equals(entry: Entry) -> bytes | None:
    """Return what all equal messages without an id have in common; None for whatever has one."""
    headers = entry.headers
    id, made = headers.get(ID), headers.get(MADE_ID)
    if entry.direct or (id and type(id) is str) or isinstance(made, str):
        return None
    raw, body = entry.original
    if not envelope.decode(raw, body, entry.key, ours=False).message.id_made_up:
        return None
    told = {name: value for name, value in headers.items() if name != copies.STREAM_OFFSET}
    properties = {**wire.properties(entry.received.header), "headers": sorted(told.items())}
    return digest(repr((entry.key, sorted(properties.items()), blake2b(body).digest())))


def digest(text: str) -> bytes:
    """Return a short name for a text, alike in every process."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _id_of(entry: Entry, body: bytes) -> str:
    # the broker gave up on a message without an id
    nth = entry.nth or f"{entry.generation}-{entry.offset}"
    return blake2b(f"{nth}\n".encode() + body, digest_size=16).hexdigest()


def _failure(entry: Entry, service: str, queue: str, at: datetime) -> Failure:
    """Return the record that the handler's worker left, or what can be told where the broker gave up by itself."""
    record = {
        name.removeprefix(copies.RECORD).replace("-", "_"): str(value)
        for name, value in entry.told.items()
        if name.startswith(copies.RECORD)
    }
    if "handler" not in record:
        record = _told_by_broker(entry)
    reason: Any = record.get("reason")
    place = queue.rpartition(".")[2]
    return Failure(
        service=service,
        # what came by the exchange of dead letters has its handler's key, and a stranger's record may name another
        handler=(record.get("handler") or place) if entry.direct else place,
        reason=reason if reason in REASONS else "broker",
        error_type=record.get("error_type", ""),
        error=record.get("error", ""),
        traceback=record.get("traceback", ""),
        attempts=_count(record.get("attempts", "")),
        first_failed_at=copies.moment(record.get("first_failed_at"), at),
        last_failed_at=copies.moment(record.get("last_failed_at"), at),
        worker=record.get("worker", ""),
    )


def _count(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _told_by_broker(entry: Entry) -> dict[str, str]:
    """Return the record of a letter that no worker wrote; a stream keeps little of what the broker knew."""
    queue, first, why = entry.first_key, str(entry.headers.get(FIRST_DEATH)), entry.headers.get(WHY)
    waited = WAITED.search(first)
    # the key is the handler's queue, but a retry's begins with its milliseconds, and what RetryAfter sent has no other
    lost = queue.partition(".")[0].isdecimal() or (waited and waited["cascade"])
    # of what was no retry, an attempt is a stranger's word
    so_far = _so_far(entry.headers) if lost or waited else {}
    if lost:
        return {"error": "a retry found no queue to return to: is the handler renamed or removed?", **so_far}
    if waited:
        why = "delivery_limit"  # the broker tells how it left the step where it had waited; a retry cannot expire
    hint = HINTS.get(str(why), "")
    error = f"the broker dead-lettered it by itself, in queue {queue!r}: {why}{hint}"
    return {"reason": "expired" if why == "expired" else "broker", "error": error, **so_far}


def _so_far(headers: Mapping[str, Any]) -> dict[str, str]:
    attempt = headers.get(ATTEMPT)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 < attempt < 1 << 31:
        return {}
    return {"attempts": str(attempt - 1), "first_failed_at": str(headers.get(FIRST_FAILED_AT))}
