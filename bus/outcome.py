"""Outcomes: what a delivery came to. Values, decided in `delivery.py` and carried out by a transport's `settle`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from .message import Message, Outgoing


Reason: TypeAlias = Literal[
    "exhausted",
    "rejected",
    "expired",
    "undecodable",
    "unknown-type",
    "unknown-version",
    "too-large",
    "crash",
    "hops",
    "broker",
]
"""Why a handler gave up: `broker` means that the broker dead-lettered the message by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The record of a failure, kept with a dead letter. `exception` is the live one, and lives in this process only."""

    service: str
    handler: str
    reason: Reason | Literal["failed"]
    error_type: str
    error: str
    traceback: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    worker: str
    exception: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """The handler is done. What it published is stored before the delivery is acked.

    Where the message is a request, `reply` is what of it goes to the requester as well. `complete` is the worker's own:
    what is to be done after everything is stored and before the delivery is acked. `ran` is false where the handler was
    not run, as it had nothing to do: that tells nothing of it.
    """

    publish: tuple[Outgoing, ...] = ()
    reply: Message | None = None
    complete: Callable[[], Awaitable[None]] | None = None
    ran: bool = True


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt of the same message by the same handler, after `delay`, never before.

    `attempt` is the number that the next delivery will have. A wait for a worker of another version does not raise
    it, and says since when it `waits`.
    """

    delay: timedelta
    failure: Failure
    attempt: int
    waits_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The handler gave up: the original bytes and the failure record go to the service's dead letters.

    Where the message is a request that it could have answered, `reply` tells the requester.
    """

    failure: Failure
    reply: Message | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Neither success nor failure: the message goes back to its queue, for any replica."""


Outcome: TypeAlias = Ack | Retry | DeadLetter | Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What somebody did about a dead letter, and when; `failed` and `failed again` are its handler's own doing.

    `to` says where a replay went if not back to its handler, and the id of the message that an edit made.
    """

    kind: Literal["claimed", "replayed", "edited", "discarded", "restored", "failed", "failed again"]
    operator: str
    at: datetime
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter as an operator sees it. `failed_again` counts the replays that came to nothing.

    `history` tells what was done about the message, oldest first; it is empty while nobody did anything.
    """

    id: str
    service: str
    handler: str
    message: Message
    failure: Failure
    failed_again: int = 0
    closed: bool = False
    history: tuple[Mark, ...] = ()

    def as_json(self) -> Mapping[str, object]:
        """Return what `dead list --json` prints of it."""
        return {
            "id": self.id,
            "service": self.service,
            "handler": self.handler,
            "type": self.message.type or None,
            "message_id": self.message.id,
            "reason": self.failure.reason,
            "attempts": self.failure.attempts,
            "first_failed_at": self.failure.first_failed_at.isoformat(),
            "last_failed_at": self.failure.last_failed_at.isoformat(),
            "error_type": self.failure.error_type,
            "error": self.failure.error,
            "failed_again": self.failed_again,
            "closed": self.closed,
        }
