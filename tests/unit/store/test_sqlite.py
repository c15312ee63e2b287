"""The SQLite store: its lock, its bounds, what it says when it cannot."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bus import ConfigurationError, SqliteStore
from bus.store import sqlite


def count(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        (number,) = connection.execute("SELECT count(*) FROM tidegate_completions").fetchone()
    return int(number)


async def test_many_completions_are_committed_together(tmp_path: Path) -> None:
    commits = 0
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        work = store.record._work

        async def counted(keys: object) -> object:
            nonlocal commits
            commits += 1
            return await work(keys)  # type: ignore[arg-type]

        store.record._work = counted  # type: ignore[assignment]
        await asyncio.gather(*(store.completion(str(number)).commit() for number in range(100)))
        assert all(await asyncio.gather(*(store.completed(str(number)) for number in range(100))))
    assert commits <= 2


async def test_a_transaction_waits_for_another_and_sees_what_that_wrote(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db", schema="CREATE TABLE IF NOT EXISTS stock (n INTEGER)")
    async with store.opened() as one, store.opened() as other:
        for number, opened in enumerate([one, other, one]):
            completion = opened.completion(f"fill {number}")
            await completion.transaction.execute("INSERT INTO stock VALUES (1)")
            await completion.commit()

        async def take(key: str, opened: sqlite.OpenSqliteStore) -> bool:
            completion = opened.completion(key)
            (left,) = (await completion.transaction.execute("SELECT count(*) FROM stock"))[0]
            await asyncio.sleep(0.001)
            if left:
                await completion.transaction.execute("DELETE FROM stock WHERE rowid = (SELECT min(rowid) FROM stock)")
            await completion.commit()
            return bool(left)

        took = await asyncio.gather(*(take(str(n), opened) for n, opened in enumerate([one, other, one, other, one])))
    assert sorted(took) == [False, False, True, True, True]


async def test_a_file_that_another_process_locks_is_waited_for_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "PATIENCE", 0.05)
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        completion = store.completion("a")
        with pytest.raises(sqlite3.OperationalError, match="locked") as locked:
            await completion.transaction.execute("SELECT 1")
        assert "a.db'): another process held its lock" in locked.value.__notes__[0]
        await completion.rollback()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await store.completion("a").commit()
        assert not await store.completed("a")  # readers never wait
        other.execute("COMMIT")
        await store.completion("a").commit()
        other.close()


async def test_a_new_file_that_another_process_opens_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    # to change to WAL mode where another is about to write, SQLite waits for nobody, whatever the timeout
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asyncio.get_running_loop().call_later(0.05, other.close)
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        await store.completion("a").commit()
        assert await store.completed("a")


@pytest.mark.parametrize("place", ["a.db", ":memory:"])
async def test_the_schema_is_run_once_at_each_opening(tmp_path: Path, place: str) -> None:
    schema = "CREATE TABLE IF NOT EXISTS seeds (what TEXT); INSERT INTO seeds VALUES ('seed')"
    store = SqliteStore(place if place == ":memory:" else tmp_path / place, schema=schema)
    for opened in (1, 2):
        async with store.opened() as one:
            assert await one.completion(None).transaction.execute("SELECT count(*) FROM seeds") == [(opened,)]


async def test_a_schema_that_cannot_run_again_is_told_at_the_second_opening(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db", schema="CREATE TABLE a (b)")
    async with store.opened():
        pass
    told = r"a\.db'\): table a already exists; mend the SQL of its schema=…, which is run whenever .*IF NOT EXISTS"
    with pytest.raises(ConfigurationError, match=told):
        async with store.opened():
            pass


async def test_a_store_for_tests_is_told_of_as_it_was_written() -> None:
    store = SqliteStore(":memory:", schema="CREATE TABEL a (b)")
    assert repr(store) == "SqliteStore(':memory:')"
    with pytest.raises(ConfigurationError, match=r"^SqliteStore\(':memory:'\): near \"TABEL\""):
        async with store.opened():
            pass


async def test_a_schema_may_end_in_a_comment(tmp_path: Path) -> None:
    schema = "CREATE TABLE IF NOT EXISTS effects (what TEXT) -- of handlers"
    async with SqliteStore(tmp_path / "a.db", schema=schema).opened() as store:
        await store.completion("a").commit()
        assert await store.completed("a")


async def test_a_full_disk_fails_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    schema = "CREATE TABLE IF NOT EXISTS effects (what BLOB); PRAGMA max_page_count = 20"
    async with SqliteStore(tmp_path / "a.db", schema=schema).opened() as store:
        completion = store.completion("a")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            await completion.transaction.execute("INSERT INTO effects VALUES (zeroblob(1000000))")
        await completion.rollback()
        assert not await store.completed("a")
        await store.completion("a").commit()
        assert await store.completed("a")


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
async def test_a_statement_that_ends_the_transaction_fails_the_run(tmp_path: Path, ending: str) -> None:
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        completion = store.completion("a")
        await completion.transaction.execute(ending)
        for use in (completion.transaction.execute("SELECT 1"), completion.commit()):
            with pytest.raises(sqlite.StoreError, match="over"):
                await use
        await completion.rollback()
        assert not await store.completed("a")
        late = store.completion("b")
        await late.rollback()
        with pytest.raises(sqlite.StoreError, match="over"):
            await late.transaction.execute("SELECT 1")


async def test_old_completions_are_forgotten_in_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FORGOTTEN_AT_ONCE", 10)
    async with SqliteStore(tmp_path / "a.db", keep=timedelta(days=7)).opened() as store:
        await asyncio.gather(*(store.completion(str(number)).commit() for number in range(25)))
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("UPDATE tidegate_completions SET at = at - ?", [7 * 86_400 + 1])
        assert not await store.completed("1")
        left = []
        for number in range(3):
            completion = store.completion(f"new {number}")
            if number:
                await completion.transaction.execute("SELECT 1")
            await completion.commit()
            left.append(count(tmp_path / "a.db"))
        assert left == [16, 7, 3]


async def test_a_message_of_an_old_completion_may_complete_again(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db", keep=60).opened() as store:
        await store.completion("a").commit()
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("UPDATE tidegate_completions SET at = at - 61")
        completion = store.completion("a")
        await completion.transaction.execute("SELECT 1")
        await completion.commit()
        assert await store.completed("a")


async def test_what_is_recorded_survives_the_loss_of_power(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "a.db").opened() as store:
        ((synchronous,),) = await store.completion(None).transaction.execute("PRAGMA synchronous")
        ((journal,),) = await store.writing.do(lambda connection: connection.execute("PRAGMA journal_mode").fetchall())
    assert (synchronous, journal) == (2, "wal")


async def test_a_file_that_cannot_be_is_told_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, but a text of more than a few bytes\n" * 100)
    for path, why in ((tmp_path / "none" / "a.db", "unable to open"), (tmp_path / "text.db", "not a database")):
        with pytest.raises(ConfigurationError, match=f"{why}.*it needs a folder that is there"):
            async with SqliteStore(path).opened():
                pass
    with pytest.raises(ConfigurationError, match="keep=0: it must be above 0"):
        SqliteStore("a.db", keep=0)


@pytest.mark.parametrize("schema", ["CREATE TABEL a (b)", "CREATE TABLE IF NOT EXISTS a (b); COMMIT"])
async def test_a_mistake_in_the_schema_is_told_as_one(tmp_path: Path, schema: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a\.db'\): .*; mend the SQL of its schema=…"):
        async with SqliteStore(tmp_path / "a.db", schema=schema).opened():
            pass


@pytest.mark.parametrize("schema", [None, "CREATE TABLE a (b) /* without an end", "SELECT 'x"])
def test_a_schema_that_never_ends_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"schema=.*: it is SQL text, and ends where"):
        SqliteStore("a.db", schema=schema)


@pytest.mark.parametrize("keep", ["7d", None, math.nan, math.inf, -math.inf, -1, timedelta()])
def test_a_keep_that_is_no_time_is_refused(keep: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"keep=.*: it must be above 0, in seconds or a timedelta"):
        SqliteStore("a.db", keep=keep)


@pytest.mark.parametrize("path", [None, "", 5, b"a.db"])
def test_a_path_that_is_none_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="it takes the path of its file"):
        SqliteStore(path)


def test_a_store_for_tests_leaves_no_file() -> None:
    store = SqliteStore(":memory:")
    folder = store.path.parent
    assert folder.exists()
    del store
    assert not folder.exists()
