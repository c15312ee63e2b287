"""The worker, on the memory transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus import Event, Release, Service, TopologyMismatch
from bus import subscriber as subscriber_module
from bus.subscriber import Gate, Turn, prefetch
from bus.testing import Tester
from bus.transport.memory import MemoryTransport
from bus.worker import Countdown, Worker
from tests.contract.stage import Log, Stage, staged


class Placed(Event, type="order.placed"):
    number: int = 0


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged("memory", "memory://") as opened:
        yield opened


def test_the_unsettled_of_a_services_handlers_sum_to_twice_its_concurrency_at_most() -> None:
    service = Service("many", concurrency=10)
    for number in range(7):
        service.on(Placed, name=f"handler{number}", concurrency=1 if number == 0 else None)(lambda event: None)
    shares = [prefetch(service, handler) for handler in service.handlers]
    assert shares == [2] * 7
    assert sum(shares) <= 20


def test_every_handler_has_one_at_least() -> None:
    service = Service("tight", concurrency=1)
    for number in range(5):
        service.on(Placed, name=f"handler{number}")(lambda event: None)
    assert [prefetch(service, handler) for handler in service.handlers] == [1] * 5


async def test_a_gate_that_is_given_up_on_takes_nothing() -> None:
    service, own = asyncio.Semaphore(1), asyncio.Semaphore(1)
    gate, other = Gate(service, Turn(), own), Gate(service, Turn())
    await other.reserve()
    waiting = asyncio.ensure_future(gate.reserve())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not own.locked()
    other.give()
    await gate.reserve()
    assert not gate.free()
    gate.give()
    assert gate.free()


def test_a_countdown_calls_once() -> None:
    calls: list[int] = []
    countdown = Countdown(["a", "b"], lambda: calls.append(1))
    for name in ("a", "a", "b", "b"):
        countdown.cross_out(name)
    assert calls == [1]
    Countdown([], lambda: calls.append(2))
    assert calls == [1, 2]


async def test_a_delivery_that_waits_too_long_for_its_slot_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber_module, "LONGEST_WAIT", 30.0)
    released: list[object] = []
    carry_out = MemoryTransport.carry_out

    def watched(self: MemoryTransport, queue: object, stored: object, outcome: object) -> None:
        if isinstance(outcome, Release):
            released.append(stored)
        carry_out(self, queue, stored, outcome)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryTransport, "carry_out", watched)
    service = Service("slow", concurrency=1)

    @service.on(Placed, timeout=100)
    async def slow(placed: Placed) -> None:
        await asyncio.sleep(40)

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1), Placed(number=2))
        await bus.advance(35)
        assert len(released) == 1
        await bus.settled()
        assert len(bus.handled(slow)) == 2


async def test_a_refused_subscription_stops_its_own_handler_only(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[int] = Log()
    service = Service("mixed")
    consume = MemoryTransport.consume

    def refusing(self: MemoryTransport, subscription: object, *, limit: int) -> object:
        if subscription.handler == "refused":  # type: ignore[attr-defined]
            raise TopologyMismatch("its queue is another")
        return consume(self, subscription, limit=limit)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryTransport, "consume", refusing)

    @service.on(Placed)
    async def refused(placed: Placed) -> None: ...

    @service.on(Placed)
    async def fine(placed: Placed) -> None:
        log.append(placed.number)

    workers: list[Worker] = []
    run = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, *given: workers.append(self) or run(self, *given))
    async with stage.hosting(service):
        await stage.bus.publish(Placed(number=3))
        await log.reaches(1)
        assert workers[0].consuming == 1
    assert "mixed.refused" in caplog.text
    assert "its queue is another" in caplog.text
