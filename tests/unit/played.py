"""A delivery that is played by hand, and the services that the tests of deliveries give it to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio

from bus import (
    Event,
    Events,
    Message,
    Outcome,
    Process,
    Service,
    Settings,
)
from bus.delivery import Runtime, build
from bus.discovery import named
from bus.middleware.logging import logging
from bus.resources import Resources
from bus.runs import Runs


class Placed(Event, type="order.placed"):
    number: int = 0


class Shipped(Event, type="order.shipped"):
    number: int = 0


class Played:
    """A delivery that remembers how it was settled, and fails to settle as often as it is told to."""

    suspect = lost = False
    routed_by: str | None = None

    def __init__(self, body: bytes = b"{}", *, attempt: int = 1, redelivered: int = 0, **changed: Any) -> None:
        given: dict[str, Any] = {"id": "one", "type": "order.placed", "version": 1, "source": "/t"} | changed
        self.message = Message(time=datetime.now(UTC), body=body, **given)
        self.attempt = attempt
        self.redelivered = redelivered
        self.first_failed_at: datetime | None = None
        self.waits_since: datetime | None = None
        self.settled: list[Outcome] = []
        self.refuse: list[Exception] = []
        self.marks: list[str] = []
        self.begun = 0

    async def begin(self) -> int:
        self.marks.append("begin")
        return self.begun

    async def end(self) -> None:
        self.marks.append("end")

    async def settle(self, outcome: Outcome) -> None:
        self.settled.append(outcome)
        if self.refuse:
            raise self.refuse.pop(0)


class Slots:
    def __init__(self) -> None:
        self.given = 0

    def give(self) -> None:
        self.given += 1


def process(
    service: Service, *middleware: Any, slots: Slots | None = None, events: Events | None = None, **further: Any
) -> Process:
    (handler,) = service.handlers
    runtime = Runtime(
        settings=Settings(max_message_bytes=1000),
        events=named([service]) if events is None else events,
        resources=Resources(service.resources, {}),
        source="/test/shop",
        threads=anyio.CapacityLimiter(4),
        **further,
    )
    return build(handler, runtime, slots or Slots(), Runs(), middleware, logging())


def handling(function: Callable[..., Any], **options: Any) -> Service:
    service = Service("shop")
    service.on(Placed, name="work", **options)(function)
    return service
