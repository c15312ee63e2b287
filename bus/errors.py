"""Every error of Tidegate, and what to do about it.

```
TidegateError
├── ConfigurationError      a mistake in settings, names, patterns, policies or wiring; found before anything runs
│   └── TopologyMismatch    a queue or exchange exists at the broker with other arguments
├── Undecodable             a body is not the event that it says it is
│   ├── UnknownType         nobody registered an event of this type
│   └── UnknownVersion      the event is of a newer version than this code knows
├── PublishError            some messages of a publish are not stored; `fates` tells which
│   ├── Unroutable          required=True, and no queue wanted the message
│   ├── PublishRefused      the broker said no
│   └── BusUnavailable      no connection, or no confirm, within the publish timeout
├── RequestFailed           the handler of a request gave up, or what came as its answer cannot be read
├── RequestTimeout          a request was stored, and no answer came within its timeout
├── MessageTooLarge         the body is over `BUS_MAX_MESSAGE_BYTES`, or the headers are over 32 KiB
├── AccessRefused           login, virtual host or permission refused
├── DeliveryLost            a delivery cannot be settled any more: its message comes again
├── Reject                  raised by a handler: dead-letter at once
└── RetryAfter              raised by a handler: try again after this delay
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Literal

from .clock import LONGEST_DELAY, Seconds, span


class TidegateError(Exception):
    """The root of every error that Tidegate raises."""


class ConfigurationError(TidegateError):
    """A mistake in settings, names, patterns, policies or wiring; `problems` has one line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class TopologyMismatch(ConfigurationError):
    """A queue or exchange exists at the broker with other arguments than this version declares."""


class Undecodable(TidegateError):
    """A body cannot be read as its event; `errors` has one line per field."""

    def __init__(self, summary: str, errors: Sequence[str] = ()) -> None:
        super().__init__("\n".join([summary, *(f"  {error}" for error in errors)]))
        self.errors = tuple(errors)


class UnknownType(Undecodable):
    """The message's type is not one that the handler subscribes to by class."""


class UnknownVersion(Undecodable):
    """The message's version is newer than the code knows, or older than its upcasts reach."""


class Fate(Enum):
    """What became of one message of a publish that failed."""

    STORED = "stored"
    REFUSED = "refused"
    UNROUTABLE = "unroutable"
    UNKNOWN = "unknown"


class PublishError(TidegateError):
    """Not every message was stored. `fates` maps each message id to what became of it.

    `unknown` means that it may have been stored: publish it again with `id=` of the same value, so that whoever
    got it already can tell.
    """

    def __init__(self, why: str, fates: Mapping[str, Fate]) -> None:
        # what Tidegate notes for itself, such as a mark on a dead letter, has no id
        named = [f"{id} {fate.value}" for id, fate in fates.items() if id]
        told = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        # what is refused for a second reason is of that kind too, and this is its text
        TidegateError.__init__(self, f"{why} ({told})" if told else why)
        self.fates = dict(fates)


class Unroutable(PublishError):
    """An event published with `required=True` matched no queue, or `to=` named a queue that does not exist."""


class PublishRefused(PublishError):
    """The broker refused to store a message: a full queue, no quorum, no permission to write, or no such exchange.

    Without the permission it is an AccessRefused as well; over the broker's own limit of size, a MessageTooLarge.
    """


class BusUnavailable(PublishError):
    """No connection to the broker, or no confirm from it, within the publish timeout."""


class RequestFailed(TidegateError):
    """No answer will come: the handler of a request gave up, or what it answered cannot be read.

    `reason` is the dead letter's (`rejected`, `exhausted`, …), or `undecodable` or `unknown-version` where it is the
    answer that cannot be read. `handler` is who gave up or answered, `error_type` and `error` say over what. A request
    that was given up on is among the dead letters of that handler's service.
    """

    def __init__(self, handler: str, reason: str, error_type: str, error: str) -> None:
        super().__init__(f"{handler}: {reason}: {error_type}: {error}")
        self.handler = handler
        self.reason = reason
        self.error_type = error_type
        self.error = error


class RequestTimeout(TidegateError, TimeoutError):
    """A request was stored, and no answer came within its timeout. `id` is the request's.

    It is not taken back: it is handled yet, or was, and an answer that comes later is dropped and counted. Give it more
    time than the handler needs, its retries included, or look for the handler: it may be stopped, or behind.
    """

    def __init__(self, id: str, type: str, wants: str, seconds: float) -> None:
        super().__init__(
            f"{type} {id}: stored, but no {wants} came within {seconds:g} s. It may be handled yet; give it more time, "
            "or see whether its handler runs."
        )
        self.id = id


class MessageTooLarge(TidegateError):
    """An event's body or its headers are over the limit.

    Publish a reference to the data instead of the data, or raise `BUS_MAX_MESSAGE_BYTES` for publishers and workers.
    The limit of headers is fixed: what is long belongs into the event.
    """

    def __init__(self, type: str, size: int, limit: int, part: Literal["body", "headers"] = "body") -> None:
        remedy = {
            "body": "Publish a reference to the data instead, "
            "or raise BUS_MAX_MESSAGE_BYTES for publishers and workers alike.",
            "headers": "Headers are for short values: put the data into the event.",
        }
        super().__init__(f"{type}: {size:,} bytes of {part}, the limit is {limit:,}. {remedy[part]}")


class AccessRefused(TidegateError):
    """The broker refused the login, the virtual host or a permission: waiting will not help."""


class DeliveryLost(TidegateError):
    """A delivery cannot be settled any more: its connection is gone, or its queue handed it out again meanwhile.

    `held` are the seconds for which its transport holds it before it comes again; 0 by default.
    """

    def __init__(self, why: str = "", *, held: float = 0.0) -> None:
        super().__init__(why)
        self.held = held


class Reject(TidegateError):
    """Raised by a handler: this message can never succeed; dead-letter it at once with this text as the reason."""


class RetryAfter(TidegateError):
    """Raised by a handler: try again after `delay` (seconds or a timedelta), if the policy has attempts left.

    Zero and less mean at once. Raises ConfigurationError over 310 days, the longest that there is, and for no time.
    """

    def __init__(self, delay: Seconds, why: str = "") -> None:
        try:
            self.delay = span(delay)
        except (OverflowError, TypeError, ValueError):
            raise ConfigurationError(
                f"RetryAfter({delay!r}): a delay is seconds as a number, or a timedelta, up to 310 days"
            ) from None
        if self.delay > LONGEST_DELAY:
            raise ConfigurationError(f"RetryAfter: a delay of {self.delay} is longer than the longest, 310 days")
        super().__init__(why or f"the handler asked to be tried again after {self.delay.total_seconds():g} s")
