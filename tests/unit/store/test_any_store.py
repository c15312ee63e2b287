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
    end: Callable[[Any], Awaitable[object]]
    """Commits as a handler can, with what it has."""


def sqlite(path: Path | str) -> Kind:
    store = SqliteStore(path, schema="CREATE TABLE IF NOT EXISTS effects (what TEXT)")

    def effects() -> list[str]:
        with sqlite3.connect(store.path) as connection:
            return [what for (what,) in connection.execute("SELECT what FROM effects")]

    return Kind(
        store,
        lambda of, what: of.transaction.execute("INSERT INTO effects VALUES (?)", [what]),
        effects,
        lambda of: of.transaction.execute("COMMIT"),
    )


@pytest.fixture(params=["file", ":memory:", "of another kind"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "of another kind":
        other = DictStore()
        return Kind(
            other,
            lambda of, what: of.transaction.write(what),
            lambda: other.effects,
            lambda of: of.transaction.commit(),
        )
    return sqlite(tmp_path / "store.db" if request.param == "file" else request.param)


async def test_what_was_committed_is_known_and_nothing_else_is(kind: Kind) -> None:
    async with kind.store.opened() as store:
        assert not await store.completed("a")
        await store.completion("a").commit()
        assert await store.completed("a")
        assert not await store.completed("b")


async def test_effects_and_completion_are_there_together_also_after_a_restart(kind: Kind) -> None:
    async with kind.store.opened() as store:
        completion = store.completion("a")
        assert not completion.used
        await kind.write(completion, "one")
        assert completion.used
        assert not await store.completed("a")
        assert kind.effects() == []
        await completion.commit()
        await completion.rollback()
    async with kind.store.opened() as store:
        assert await store.completed("a")
    assert kind.effects() == ["one"]


async def test_what_is_rolled_back_never_happened(kind: Kind) -> None:
    async with kind.store.opened() as store:
        completion = store.completion("a")
        await kind.write(completion, "one")
        await completion.rollback()
        await completion.rollback()
        assert not await store.completed("a")
        again = store.completion("a")
        await kind.write(again, "two")
        await again.commit()
    assert kind.effects() == ["two"]


async def test_a_handler_that_commits_stores_what_it_wrote_and_records_nothing(kind: Kind) -> None:
    async with kind.store.opened() as store:
        completion = store.completion("a")
        assert type(completion.transaction) is kind.store.transaction_type
        await kind.write(completion, "one")
        await kind.end(completion)
        assert not await store.completed("a")
        await completion.rollback()
        assert not await store.completed("a")
        again = store.completion("a")
        await kind.write(again, "one")
        await again.commit()
        assert await store.completed("a")
    assert kind.effects() == ["one", "one"]


async def test_of_two_runs_of_one_message_the_first_to_commit_counts(kind: Kind) -> None:
    async with kind.store.opened() as one, kind.store.opened() as other:
        await one.completion("a").commit()
        late = other.completion("a")
        with pytest.raises(AlreadyCompleted):
            await kind.write(late, "twice")
            await late.commit()
        await late.rollback()
        with suppress(AlreadyCompleted):  # without effects there is nothing to undo
            await one.completion("a").commit()
    assert kind.effects() == []


async def test_without_a_key_effects_are_written_and_nothing_is_recorded(kind: Kind) -> None:
    async with kind.store.opened() as store:
        for what in ("one", "two"):
            completion = store.completion(None)
            await kind.write(completion, what)
            await completion.commit()
        await store.completion(None).commit()
    assert kind.effects() == ["one", "two"]


async def test_closing_rolls_back_what_is_open_and_leaves_no_lock(kind: Kind) -> None:
    async with kind.store.opened() as store:
        await kind.write(store.completion("a"), "never")
    async with kind.store.opened() as store:
        completion = store.completion("a")
        await kind.write(completion, "one")
        await completion.commit()
    assert kind.effects() == ["one"]
