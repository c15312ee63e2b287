"""D6: what was completed is not run again, and what is written in the store's transaction happens once."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bus import Fate, Message, Service, SqliteStore, SqliteTransaction, fixed
from bus.store import sqlite
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Parcel
from bus.transport.rabbitmq.link import Link
from tests.broker.fixtures import Shared

from .doomed import SCHEMA, billing, effects
from .stage import Log, Placed, Shipped, Stage


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "billing.db", schema=SCHEMA)


def collecting(ids: Log[str]) -> Service:
    """Return a service that notes the ids of what was published."""
    service = Service("collector")

    @service.on("order.shipped")
    async def collect(message: Message) -> None:
        ids.append(message.id)

    return service


async def test_d6_a_completed_message_is_not_run_again_by_another_worker_after_a_restart(
    stage: Stage, store: SqliteStore
) -> None:
    ids: Log[str] = Log()
    await stage.declare(billing(store))
    async with stage.hosting(collecting(ids)):
        async with stage.hosting(billing(store)) as first:
            await stage.bus.publish(Placed(number=1), id="a")
            await ids.reaches(1)
            await first.stop()
        async with stage.hosting(billing(SqliteStore(store.path, schema=SCHEMA))) as second:
            await stage.bus.publish(Placed(number=1), id="a")
            await stage.bus.publish(Placed(number=2), id="b")
            await ids.reaches(2)
            await second.stop()
            assert await stage.ready("billing.refund") == 0
    assert effects(store.path) == [1, 2]
    assert len(set(ids)) == 2


async def test_d6_of_two_workers_that_run_a_message_at_once_one_commits_and_both_ack(
    stage: Stage, store: SqliteStore
) -> None:
    running, both, counts = Log[str](), asyncio.Event(), []

    def service(opened: SqliteStore) -> Service:
        service = Service("billing", concurrency=1, store=opened)

        @service.on(Placed, idempotent=True)
        async def refund(placed: Placed, message: Message, transaction: SqliteTransaction) -> Shipped:
            running.append(message.id)
            await both.wait()
            await transaction.execute("INSERT INTO effects VALUES (?)", [placed.number])
            return Shipped(number=placed.number)

        return service

    ids: Log[str] = Log()
    async with stage.hosting(collecting(ids)), stage.hosting(service(store)) as one:
        await stage.bus.publish(Placed(number=1), id="a")
        await running.reaches(1)
        one.worker.pause("billing")
        async with stage.hosting(service(SqliteStore(store.path, schema=SCHEMA))) as other:
            await stage.bus.publish(Placed(number=1), id="a")
            await running.reaches(2)
            both.set()
            await ids.reaches(1)
            for worker in (one, other):
                await worker.stop()
                counts.append(worker.worker.flows["billing.refund"].counts)
        assert await stage.ready("billing.refund") == 0
    assert (effects(store.path), running) == ([1], ["a", "a"])
    assert sum(count["completed before"] for count in counts) == 1


async def test_d6_a_store_that_cannot_commit_fails_the_run_and_the_same_events_come_with_the_next(
    stage: Stage, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE", 0.05)
    service, ids = Service("billing", store=store), Log[str]()

    @service.on(Placed, idempotent=True, retry=fixed(1000, 0.05))
    async def note(placed: Placed) -> Shipped:
        return Shipped(number=placed.number)

    async with stage.hosting(collecting(ids)), stage.hosting(service) as worker:
        with sqlite3.connect(store.path, isolation_level=None) as locking:
            locking.execute("BEGIN IMMEDIATE")
            await stage.bus.publish(Placed(number=1), id="a")
            await ids.reaches(2)
            assert locking.execute("SELECT count(*) FROM tidegate_completions").fetchall() == [(0,)]
            locking.execute("COMMIT")
        async with store.opened() as opened, asyncio.timeout(20):
            while not await opened.completed(completion(store)):
                await asyncio.sleep(0.02)
        await worker.stop()
        assert await stage.ready("billing.note") == 0
    assert len(set(ids)) == 1
    assert [letter async for letter in stage.transport.dead_letters.browse("billing")] == []


def completion(store: SqliteStore) -> str:
    """Return the first key that the store has recorded, if there is one."""
    with sqlite3.connect(store.path) as connection:
        found = connection.execute("SELECT key FROM tidegate_completions").fetchone()
    return str(found[0]) if found else ""


async def nameless(stage: Stage, body: bytes) -> None:
    """Publish a message without an id."""
    if stage.kind == "memory":
        await stage.raw("order.placed", body, id_made_up=True)
        return
    # by hand: the client would make up an id
    (address,) = addresses(stage.settings)
    link = await Link.connect(address)
    channel = await link.channel(confirm=True)
    assert await channel.publish([Parcel("", "events", "order.placed", 0, b"", body)]).future == [Fate.STORED]
    await link.aclose()


async def test_d6_what_has_no_id_of_its_own_is_run_each_time_and_counted(stage: Stage, store: SqliteStore) -> None:
    ids: Log[str] = Log()
    async with stage.hosting(collecting(ids)), stage.hosting(billing(store)) as worker:
        for _ in range(2):
            await nameless(stage, b'{"number": 7}')
        await ids.reaches(2)
        counts = dict(worker.worker.flows["billing.refund"].counts)
        await worker.stop()
    assert effects(store.path) == [7, 7]
    assert counts == {"without an id": 2}


async def test_l2_a_handler_that_wrote_and_lost_its_connection_is_not_run_again_in_its_worker(
    rabbitmq: Stage, broker: Shared, vhost_name: str, store: SqliteStore
) -> None:
    running, go, ids = Log[int](), asyncio.Event(), Log[str]()
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True)
    async def refund(placed: Placed, transaction: SqliteTransaction) -> Shipped:
        await transaction.execute("INSERT INTO effects VALUES (?)", [placed.number])
        running.append(placed.number)
        await go.wait()
        return Shipped(number=placed.number)

    async with rabbitmq.hosting(collecting(ids)), rabbitmq.hosting(service) as worker:
        await rabbitmq.bus.publish(Placed(number=1), id="a")
        await running.reaches(1)
        await asyncio.to_thread(broker.node.ctl, "close_all_connections", "-p", vhost_name, "maintenance")
        go.set()
        # behind it in the queue
        await rabbitmq.bus.publish(Placed(number=2), id="b")
        await ids.reaches(2)
        await worker.stop()
        assert await rabbitmq.ready("billing.refund") == 0
    assert (running, effects(store.path), len(ids)) == ([1, 2], [1, 2], 2)


async def test_d6_kill_9_between_events_completion_and_ack_doubles_no_effect(
    rabbitmq: Stage, store: SqliteStore
) -> None:
    ids, path = Log[str](), store.path

    async def worker(point: str) -> asyncio.subprocess.Process:
        environment = os.environ | {"BUS_URL": rabbitmq.settings.url, "BUS_LOG_LEVEL": "error"}
        command = (sys.executable, "-m", "tests.contract.doomed", str(path), point)
        process = await asyncio.create_subprocess_exec(*command, env=environment)
        started.push_async_callback(ended, process)
        return process

    async def ended(process: asyncio.subprocess.Process) -> None:
        if process.returncode is None:
            process.kill()
            await process.wait()

    await rabbitmq.declare(billing(store))
    async with AsyncExitStack() as started, rabbitmq.hosting(collecting(ids)), asyncio.timeout(100):
        await rabbitmq.bus.publish(Placed(number=1), id="a")
        # killed with its events stored and nothing committed: it runs again, with the same ids
        assert await (await worker("before")).wait() == -signal.SIGKILL
        assert effects(path) == []
        # killed with its completion recorded and nothing acked: it does not run again
        assert await (await worker("after")).wait() == -signal.SIGKILL
        assert effects(path) == [1]
        last = await worker("never")
        await rabbitmq.bus.publish(Placed(number=2), id="b")
        await ids.holds(lambda seen: len(set(seen)) == 2, "the second result")
        last.send_signal(signal.SIGTERM)
        assert await last.wait() == 0
        assert await rabbitmq.ready("billing.refund") == 0
    assert effects(path) == [1, 2]
    assert len(ids) == 3
