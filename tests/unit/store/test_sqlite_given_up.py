"""Statements and transactions that somebody stopped waiting for: they hold nothing, and commit nothing of others."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from bus import SqliteStore
from bus.store import sqlite


SCHEMA = "CREATE TABLE IF NOT EXISTS effects (what TEXT)"
WRITE = "INSERT INTO effects VALUES ('it')"
LONG = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 30000000) SELECT max(i) FROM c"
SLOW = LONG.replace("30000000", "500000")
WITHIN = 20


async def test_whoever_gives_up_a_transaction_leaves_no_lock(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        holder = store.completion("a")
        await holder.transaction.execute("SELECT 1")
        waiting = store.completion("b")
        task = asyncio.ensure_future(waiting.transaction.execute("SELECT 1"))
        recording = asyncio.ensure_future(store.completion("c").commit())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await waiting.rollback()
        await holder.rollback()
        async with asyncio.timeout(20):
            await recording
        assert [await store.completed(key) for key in "abc"] == [False, False, True]


async def test_a_statement_that_outlives_its_run_does_not_begin_and_gives_its_turn_back(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db", schema=SCHEMA).opened() as store:
        holder, left = store.completion("a"), store.completion("b")
        await holder.transaction.execute(WRITE)
        orphan = asyncio.ensure_future(left.transaction.execute(WRITE))
        await asyncio.sleep(0)
        await left.rollback()
        await holder.commit()
        with pytest.raises(sqlite.StoreError, match="over"):
            await orphan
        async with asyncio.timeout(WITHIN):
            await store.completion("c").commit()
        assert [await store.completed(key) for key in "abc"] == [True, False, True]


async def test_a_begin_that_waits_for_another_process_ends_with_its_run(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db", schema=SCHEMA).opened() as store:
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        left = store.completion("a")
        orphan = asyncio.ensure_future(left.transaction.execute(WRITE))
        await asyncio.sleep(0.05)
        await left.rollback()
        other.execute("COMMIT")
        other.close()
        with pytest.raises(sqlite.StoreError, match="over"):
            await orphan
        async with asyncio.timeout(WITHIN):
            await store.completion("b").commit()


async def test_a_handler_that_gave_up_its_turn_completes_without_what_another_wrote(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db", schema=SCHEMA).opened() as store, asyncio.TaskGroup() as tasks:
        holder, hasty = store.completion("a"), store.completion("b")
        await holder.transaction.execute(WRITE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hasty.transaction.execute(WRITE), 0.02)
        committing = tasks.create_task(hasty.commit())
        await asyncio.sleep(0.02)
        assert [await store.completed(key) for key in "ab"] == [False, False]
        await holder.transaction.execute(WRITE)
        await holder.rollback()
        await committing
        assert [await store.completed(key) for key in "ab"] == [False, True]
        look = store.completion(None)
        assert await look.transaction.execute("SELECT * FROM effects") == []
        await look.rollback()


async def test_a_rollback_that_is_cancelled_happens_and_ends_the_statement_that_runs(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db", schema=SCHEMA).opened() as store:
        completion = store.completion("a")

        async def run() -> None:
            try:
                await completion.transaction.execute(LONG)
            finally:
                await completion.rollback()

        await completion.transaction.execute(WRITE)
        task = asyncio.ensure_future(run())
        await asyncio.sleep(0.05)
        # the rollback waits behind it, so that it is cancelled before it begins
        gate = threading.Event()
        held = asyncio.ensure_future(store.writing.do(lambda _: gate.wait(WITHIN)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        gate.set()
        await held
        async with asyncio.timeout(WITHIN):
            await store.completion("b").commit()
        assert [await store.completed(key) for key in "ab"] == [False, True]


async def test_a_store_closes_without_waiting_for_a_statement_that_runs_long(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        long = asyncio.ensure_future(store.completion("a").transaction.execute(LONG))
        await asyncio.sleep(0.05)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await long


async def test_what_was_found_completed_stays_so_for_a_run_that_did_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it is found while the commit waits already
    monkeypatch.setattr(sqlite, "LOOK", f"{sqlite.LOOK} AND ({SLOW}) > 0")
    async with SqliteStore(tmp_path / "a.db", schema=SCHEMA).opened() as store:
        await store.completion("a").commit()
        again = store.completion("a")
        task = asyncio.ensure_future(again.transaction.execute(WRITE))
        while not again.used:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(sqlite.AlreadyCompleted):
            await again.commit()
        await again.rollback()
