"""Context: what a handler is told about its delivery, and the events that it will publish."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from . import clock
from .clock import LONGEST_DELAY, Seconds, span
from .errors import ConfigurationError
from .event import Event
from .message import Message, Outgoing, check_address, derived_id, named, wrap


NOW: Final = timedelta()


class Context:
    """What a handler is told: `message`, `attempt` (1 the first time), `first_failed_at`; and a way to publish.

    What it publishes is stored once the handler has returned, before its delivery is acked: a handler that raises has
    published nothing. Each event is stored by itself: a run that fails over one of them, which no queue wants or the
    broker refuses, may have stored the others. Ids are made from the message's id, so that the next run, after that or
    after a crash, publishes the same.
    """

    __slots__ = ("_limit", "_outgoing", "_source", "_subscription", "attempt", "first_failed_at", "message")

    def __init__(
        self,
        message: Message,
        *,
        subscription: str,
        source: str,
        limit: int,
        attempt: int = 1,
        first_failed_at: datetime | None = None,
    ) -> None:
        self.message = message
        self.attempt = attempt
        self.first_failed_at = first_failed_at
        self._subscription = subscription
        self._source = source
        self._limit = limit
        self._outgoing: list[Outgoing] = []

    def publish(
        self,
        *events: Event,
        delay: Seconds = 0,
        at: datetime | None = None,
        required: bool = False,
        to: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Publish events once the handler has returned; returns their ids, and is not awaited.

        `delay` is in seconds or a timedelta, `at` a point in time with a zone instead. `required` fails the delivery
        if no queue wants the event; the others of the run are stored all the same. `to` names one queue to send to.
        Raises MessageTooLarge at once.
        """
        wait = until(delay, at)
        if to is not None:
            check_address(to)
        made = []
        for position, event in enumerate(events, len(self._outgoing)):
            kind, _ = named(event.__class__)
            id = derived_id(self.message, self._subscription, position, kind)
            message = wrap(event, id=id, source=self._source, limit=self._limit, cause=self.message, headers=headers)
            made.append(Outgoing(message, wait, required, to))
        self._outgoing += made
        return [outgoing.message.id for outgoing in made]

    @property
    def outgoing(self) -> tuple[Outgoing, ...]:
        """What was published so far, as messages on their way out."""
        return tuple(self._outgoing)


def until(delay: Seconds, at: datetime | None) -> timedelta:
    """Return how long to wait; zero, negative and past mean now. Raises ConfigurationError over 310 days."""
    if at is None:
        if not delay:
            return NOW
        try:
            wait = span(delay)
        except (OverflowError, TypeError, ValueError):
            raise ConfigurationError(
                f"publish: delay={delay!r}; it is seconds as a number, or a timedelta, up to 310 days"
            ) from None
    elif delay:
        raise ConfigurationError("publish: give delay= or at=, not both")
    elif not isinstance(at, datetime) or at.tzinfo is None:
        raise ConfigurationError(f"publish: at={at!r}; it is a datetime with a time zone, as datetime.now(UTC) + …")
    else:
        wait = at - clock.now()
    if wait > LONGEST_DELAY:
        raise ConfigurationError(f"publish: a delay of {wait} is longer than the longest there is, 310 days")
    return max(wait, NOW)
