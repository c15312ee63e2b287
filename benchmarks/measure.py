"""What every peer is measured by: the same event, and a clock from the first message to the last."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field


WINDOW = 256
"""Publishes in flight, and deliveries unsettled."""


class Line(BaseModel):
    """A line of the order, for peers without an event class of their own."""

    model_config = ConfigDict(frozen=True)

    sku: str
    quantity: Annotated[int, Field(gt=0)]


class Order(BaseModel):
    """An order of about 250 bytes of JSON."""

    model_config = ConfigDict(frozen=True)

    order_id: UUID
    customer_id: str
    lines: tuple[Line, ...]
    placed_at: datetime
    note: str


class Reserved(BaseModel):
    """What the loop publishes for each order."""

    model_config = ConfigDict(frozen=True)

    order_id: UUID
    customer_id: str
    note: str


def order(number: int) -> dict[str, object]:
    """Return the fields of the order of this number."""
    return {
        "order_id": UUID(int=number),
        "customer_id": f"customer-{number:08}",
        "lines": ({"sku": "sku-0001", "quantity": 1}, {"sku": "sku-0002", "quantity": 2}),
        "placed_at": datetime(2026, 11, 24, 12, tzinfo=UTC),
        "note": "leave it at the door, please; ring twice",
    }


class Stopwatch:
    """Counts messages; `done` is set at the last, and the rates are from the first on."""

    def __init__(self, total: int) -> None:
        self.done = asyncio.Event()
        self._left = self._total = total
        self._started: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)

    def start(self) -> None:
        """Start, if it does not run yet."""
        if self._started is None:
            self._started = (time.perf_counter(), time.process_time())

    def one(self) -> None:
        """Count one message that is done."""
        self._left -= 1
        if not self._left:
            self._ended = (time.perf_counter(), time.process_time())
            self.done.set()

    def result(self) -> dict[str, float]:
        """Return messages per second and microseconds of CPU per message."""
        assert self._started is not None
        seconds, cpu = (end - start for end, start in zip(self._ended, self._started, strict=True))
        return {"rate": self._total / seconds, "cpu": cpu / self._total * 1e6}


async def in_window(total: int, publish: object) -> dict[str, float]:
    """Call `publish(number)` for every number, `WINDOW` at a time."""
    watch, numbers = Stopwatch(total), iter(range(total))

    async def publisher() -> None:
        for number in numbers:
            await publish(number)  # type: ignore[operator]
            watch.one()

    watch.start()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(WINDOW):
            tasks.create_task(publisher())
    return watch.result()
