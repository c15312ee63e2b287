"""C1: what ails one service leaves its neighbours as they were. Of the figures, see benchmarks/containment.py."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus import Event, Service, SqliteStore, exponential
from bus.resources import where
from bus.store import sqlite

from .stage import Log, Placed, Shipped, Stage


NEIGHBOURS = 10
"""Events that the healthy service gets while the sick one is ill."""


class Echoed(Event, type="order.echoed"):
    number: int = 0


class Pool:
    """What the sick service needs."""


def healthy(log: Log[int]) -> Service:
    """Return a service that works."""
    service = Service("healthy")

    @service.on(Shipped)
    async def work(shipped: Shipped) -> None:
        log.append(shipped.number)

    return service


async def neighbours_go_on(stage: Stage, log: Log[int]) -> None:
    """Let the healthy service handle what is published to it now."""
    before = len(log)
    await stage.bus.publish(*(Shipped(number=number) for number in range(NEIGHBOURS)))
    await log.reaches(before + NEIGHBOURS)


async def test_c1_a_resource_that_cannot_be_opened_holds_up_its_own_service_only(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    fine: Log[int] = Log()
    done: Log[int] = Log()
    there: list[bool] = []
    sick = Service("sick")

    @sick.resource
    async def pool() -> AsyncIterator[Pool]:
        if not there:
            raise ConnectionRefusedError("no database at port 5432")
        yield Pool()

    @sick.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None:
        done.append(placed.number)

    async with stage.hosting(sick, healthy(fine)) as hosted:
        await stage.bus.publish(Placed(number=1))
        await neighbours_go_on(stage, fine)
        told = hosted.health.ready().body
        assert isinstance(told, dict)
        assert told["status"] == "not ready"
        assert told["handlers"]["healthy.work"] == {"state": "consuming"}
        why = (
            "a resource or the store cannot be opened: ConnectionRefusedError: no database at port 5432; "
            f"while Pool was opened by {where(pool)}"
        )
        assert told["handlers"]["sick.work"] == {"state": "not consuming", "why": why}
        there.append(True)
        await done.reaches(1)
        assert hosted.health.ready().status == 200
    said = [record.getMessage() for record in caplog.records if "event=service unavailable" in record.getMessage()]
    assert f"service=sick error={why}" in said[0]


async def test_c1_a_store_that_is_locked_holds_up_its_own_service_only(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE", 0.05)
    fine: Log[int] = Log()
    done: Log[int] = Log()
    sick = Service("sick", store=SqliteStore(tmp_path / "sick.db"))

    @sick.on(Placed, idempotent=True)
    async def work(placed: Placed) -> None:
        done.append(placed.number)

    other = sqlite3.connect(tmp_path / "sick.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    async with stage.hosting(sick, healthy(fine)) as hosted:
        await stage.bus.publish(Placed(number=1))
        await neighbours_go_on(stage, fine)
        told = hosted.health.ready().body
        assert isinstance(told, dict)
        assert "another process held its lock" in told["handlers"]["sick.work"]["why"]
        other.close()
        await done.reaches(1)


async def test_c1_a_worker_whose_only_service_waits_for_its_resource_can_be_stopped(stage: Stage) -> None:
    tried: Log[int] = Log()
    service = Service("waits")

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        tried.append(1)
        raise ConnectionRefusedError
        yield

    @service.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None: ...

    async with stage.hosting(service) as hosted:
        await tried.reaches(2)
        assert hosted.health.ready().status == 503
        await hosted.stop()


async def test_c1_a_resource_that_fails_in_use_stops_its_own_service_and_is_opened_again(stage: Stage) -> None:
    fine: Log[int] = Log()
    done: Log[int] = Log()
    opened: Log[int] = Log()
    lost = asyncio.Event()
    sick = Service("sick")

    async def poll() -> None:
        await lost.wait()
        lost.clear()
        raise ConnectionError("the poller lost its connection")

    @sick.resource
    async def pool() -> AsyncIterator[Pool]:
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(poll())
            opened.append(1)
            yield Pool()
            polling.cancel()

    @sick.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None:
        done.append(placed.number)
        if placed.number == 1 and len(opened) == 1:
            lost.set()
            await asyncio.sleep(60)

    async with stage.hosting(sick, healthy(fine)) as hosted:
        await stage.bus.publish(Placed(number=1))
        await neighbours_go_on(stage, fine)
        await done.reaches(2)
        await stage.bus.publish(Placed(number=2))
        await done.reaches(3)
        assert list(done) == [1, 1, 2]
        assert hosted.health.ready().status == 200


async def test_c1_what_closing_a_resource_raises_lets_the_neighbours_finish(stage: Stage) -> None:
    log: Log[str] = Log()
    closed = asyncio.Event()
    sick, slow = Service("sick"), Service("slow")

    @sick.resource
    async def pool() -> AsyncIterator[Pool]:
        yield Pool()
        closed.set()
        raise OSError("the pool is stuck")

    @sick.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None: ...

    @slow.on(Shipped)
    async def work_slowly(shipped: Shipped) -> None:
        log.append("begins")
        await closed.wait()
        await asyncio.sleep(0.05)
        log.append("ends")

    with pytest.raises(ExceptionGroup) as raised:
        async with stage.hosting(sick, slow):
            await stage.bus.publish(Shipped())
            await log.reaches(1)
    assert log == ["begins", "ends"]
    assert raised.group_contains(OSError, match="the pool is stuck")


async def test_c1_a_flood_lets_the_neighbours_pass(stage: Stage) -> None:
    fine: Log[int] = Log()
    flooded: Log[int] = Log()
    flood, sick = 1_000, Service("sick")

    @sick.on(Placed)
    async def work(placed: Placed) -> None:
        flooded.append(placed.number)

    async with stage.hosting(sick, healthy(fine)) as hosted:
        for name in ("sick", "healthy"):
            hosted.worker.pause(name)
        await stage.bus.publish(*(Placed(number=number) for number in range(flood)))
        await stage.bus.publish(*(Shipped(number=number) for number in range(NEIGHBOURS)))
        await hosted.consumes()
        for name in ("sick", "healthy"):
            hosted.worker.resume(name)
        await fine.reaches(NEIGHBOURS)
        assert len(flooded) < flood
        await flooded.reaches(flood)


@pytest.mark.parametrize("ailment", ["hangs", "raises", "poison"])
async def test_c1_what_ails_a_service_lets_the_neighbours_pass(stage: Stage, ailment: str) -> None:
    fine: Log[int] = Log()
    begun: Log[int] = Log()
    sick = Service("sick", concurrency=2)

    @sick.on(Placed, retry=exponential(attempts=6, first=600, limit=600))
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        if ailment == "hangs":
            await asyncio.Event().wait()
        raise RuntimeError("it always raises")

    async with stage.hosting(sick, healthy(fine), grace=0):
        if ailment == "poison":
            await asyncio.gather(*(stage.raw("order.placed", b"\xff\x00 no json") for _ in range(20)))
            await stage.letters("sick")
        else:
            await stage.bus.publish(*(Placed(number=number) for number in range(20)))
            await begun.reaches(2)
        await neighbours_go_on(stage, fine)


async def test_c1_a_storm_lets_the_neighbours_pass(stage: Stage) -> None:
    fine: Log[int] = Log()
    blown: Log[int] = Log()
    sick = Service("sick")

    @sick.on(Placed)
    async def there(placed: Placed) -> Echoed:
        blown.append(placed.number)
        return Echoed(number=placed.number)

    @sick.on(Echoed)
    async def back(echoed: Echoed) -> Placed:
        return Placed(number=echoed.number)

    async with stage.hosting(sick, healthy(fine)):
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        await blown.reaches(1)
        await neighbours_go_on(stage, fine)
        assert len(await stage.letters("sick", 20)) == 20
