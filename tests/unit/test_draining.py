"""The end of a handler's tasks: within the grace, whatever the broker and the handler make of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus import Event, Service, draining
from bus.draining import drain
from bus.transport.memory import MemoryConsumer, MemoryTransport
from tests.contract.stage import Log, staged


class Placed(Event, type="order.placed"):
    number: int = 0


async def test_a_broker_that_does_not_answer_has_no_longer_than_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    service, began, asked = Service("shop"), Log[int](), Log[int]()

    async def unanswered(self: MemoryConsumer, unsettled: int) -> None:
        asked.append(unsettled)
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryConsumer, "limit", unanswered)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        began.append(placed.number)
        await asyncio.sleep(600)

    async with staged("memory", "memory://") as stage:
        async with stage.hosting(service, grace=0.1) as hosted:
            await stage.bus.publish(Placed())
            await began.reaches(1)
            await hosted.stop()
        assert asked == [0]
        assert isinstance(stage.transport, MemoryTransport)
        assert len(stage.transport.queues["shop.work"].ready) == 1


async def test_what_does_not_end_is_named_and_told_once_and_what_ends_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(draining, "ENDS_WITHIN", 0.01)
    told: list[str] = []
    go = asyncio.Event()

    async def stubborn() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    async def drained(*works: Any) -> None:
        tasks = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(0)
        await drain("shop.work", tasks, 0.01, lambda: told.append("told"))

    await drained(asyncio.sleep(60), asyncio.sleep(0))
    told_of_what_ends = list(told)
    await drained(stubborn(), stubborn(), asyncio.sleep(60))
    go.set()
    assert (told_of_what_ends, told) == ([], ["told"])
    assert "event=handler does not end handler=shop.work runs=2" in caplog.text
