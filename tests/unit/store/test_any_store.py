"""What every store must keep: one suite for the SQLite store, on a file and for tests, and for one of another kind."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bus import AlreadyCompleted, SqliteStore, Store

from .in_memory import DictStore


@dataclass
class Kind:
    """A store, and how a test writes and reads effects with it."""

    store: Store
    write: Callable[[Any, str], Awaitable[object]]
    effects: Callable[[], list[str]]


def sqlite(path: Path | str) -> Kind:
    store = SqliteStore(path, schema="CREATE TABLE IF NOT EXISTS effects (what TEXT)")

    def effects() -> list[str]:
        with sqlite3.connect(store.path) as connection:
            return [what for (what,) in connection.execute("SELECT what FROM effects")]

    return Kind(store, lambda tx, what: tx.execute("INSERT INTO effects VALUES (?)", [what]), effects)


@pytest.fixture(params=["file", ":memory:", "of another kind"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "of another kind":
        other = DictStore()
        return Kind(other, lambda tx, what: tx.write(what), lambda: other.effects)
    return sqlite(tmp_path / "store.db" if request.param == "file" else request.param)


async def test_what_was_committed_is_known_and_nothing_else_is(kind: Kind) -> None:
    async with kind.store.opened() as store:
        assert not await store.completed("a")
        await store.transaction("a").commit()
        assert await store.completed("a")
        assert not await store.completed("b")


async def test_effects_and_completion_are_there_together_also_after_a_restart(kind: Kind) -> None:
    async with kind.store.opened() as store:
        transaction = store.transaction("a")
        assert not transaction.used
        await kind.write(transaction, "one")
        assert transaction.used
        assert not await store.completed("a")
        assert kind.effects() == []
        await transaction.commit()
        await transaction.rollback()
    async with kind.store.opened() as store:
        assert await store.completed("a")
    assert kind.effects() == ["one"]


async def test_what_is_rolled_back_never_happened(kind: Kind) -> None:
    async with kind.store.opened() as store:
        transaction = store.transaction("a")
        await kind.write(transaction, "one")
        await transaction.rollback()
        await transaction.rollback()
        assert not await store.completed("a")
        again = store.transaction("a")
        await kind.write(again, "two")
        await again.commit()
    assert kind.effects() == ["two"]


async def test_of_two_runs_of_one_message_the_first_to_commit_counts(kind: Kind) -> None:
    async with kind.store.opened() as one, kind.store.opened() as other:
        await one.transaction("a").commit()
        late = other.transaction("a")
        with pytest.raises(AlreadyCompleted):
            await kind.write(late, "twice")
            await late.commit()
        await late.rollback()
        with suppress(AlreadyCompleted):  # without effects there is nothing to undo
            await one.transaction("a").commit()
    assert kind.effects() == []


async def test_without_a_key_effects_are_written_and_nothing_is_recorded(kind: Kind) -> None:
    async with kind.store.opened() as store:
        for what in ("one", "two"):
            transaction = store.transaction(None)
            await kind.write(transaction, what)
            await transaction.commit()
        await store.transaction(None).commit()
    assert kind.effects() == ["one", "two"]


async def test_closing_rolls_back_what_is_open_and_leaves_no_lock(kind: Kind) -> None:
    async with kind.store.opened() as store:
        await kind.write(store.transaction("a"), "never")
    async with kind.store.opened() as store:
        transaction = store.transaction("a")
        await kind.write(transaction, "one")
        await transaction.commit()
    assert kind.effects() == ["one"]
