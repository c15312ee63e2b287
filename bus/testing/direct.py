"""Calling a handler directly, without a bus."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from .. import clock
from ..clock import Seconds
from ..context import Context
from ..event import Event
from ..message import Ids, Message
from ..settings import Settings


_NO_BODY: Final = b"{}"


class RecordedContext(Context):
    """A context that remembers the events that were published through it."""

    __slots__ = ("published",)

    def __init__(self, message: Message, **told: Any) -> None:
        super().__init__(message, **told)
        self.published: list[Event] = []

    def publish(
        self,
        *events: Event,
        delay: Seconds = 0,
        at: datetime | None = None,
        required: bool = False,
        to: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Publish as `Context.publish`, and remember the events."""
        ids = super().publish(*events, delay=delay, at=at, required=required, to=to, headers=headers)
        self.published += events
        return ids


def context(*, attempt: int = 1, message: Message | None = None) -> RecordedContext:
    """Return a context for calling a handler directly: `await reserve_stock(order, context(attempt=2), pool)`.

    `published` of it lists the events that the handler handed to it. An attempt after the first failed first just now.
    """
    told = message or Message(
        id=Ids()(), type="test", version=1, source="/test", time=clock.now(), body=_NO_BODY, correlation_id=None
    )
    return RecordedContext(
        told,
        subscription="test.test",
        source="/test",
        limit=Settings().max_message_bytes,
        attempt=attempt,
        first_failed_at=clock.now() if attempt > 1 else None,
    )
