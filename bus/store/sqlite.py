"""SqliteStore: completions in a SQLite file, for workers of one machine."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from .. import clock
from ..clock import Seconds, span
from ..errors import ConfigurationError, TidegateError
from ..lots import Lots
from . import AlreadyCompleted


T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]

IN_MEMORY: Final = ":memory:"
KEEP: Final = timedelta(days=7)
PATIENCE: Final = 10.0
"""Seconds that a writer waits for those of other processes."""
LONGEST_NAP: Final = 0.05
"""Seconds between two looks whether the file is free: SQLite tells nobody when it is."""
WRONG_SQL: Final = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
"""Codes that Tidegate's own statements never end with as a file is opened."""
FORGOTTEN_AT_ONCE: Final = 100
"""Old completions that go with a commit, at most: more than came with it, and never a long delete."""

TABLE: Final = """
CREATE TABLE IF NOT EXISTS tidegate_completions (key TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tidegate_completions_at ON tidegate_completions (at);
"""
RECORD: Final = """
INSERT INTO tidegate_completions (key, at) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET at = excluded.at WHERE tidegate_completions.at <= ?
"""
FORGET: Final = """
DELETE FROM tidegate_completions WHERE key IN
(SELECT key FROM tidegate_completions WHERE at <= ? ORDER BY at LIMIT ?)
"""
LOOK: Final = "SELECT 1 FROM tidegate_completions WHERE key = ? AND at > ?"

AGAIN: Final = "which is run whenever the store is opened (CREATE … IF NOT EXISTS, INSERT OR IGNORE)"
ENDED: Final = "Tidegate commits it once the handler has returned and its events are stored; to have it undone, raise"
FIRST: Final = "another run of this message was completed first"
OVER: Final = (
    "the transaction is over: it ends when its handler returns, or with a statement that ends it (COMMIT, ROLLBACK, a "
    "full disk); Tidegate commits it"
)


class StoreError(TidegateError):
    """A store's file cannot be used as it was, or a transaction was used as none can be."""


class SqliteStore:
    """Completions in one SQLite file, which the workers of one machine share; none of another machine can.

    `keep` (7 days) is how long a completion is remembered: a duplicate that comes later runs again. `schema` is SQL
    that makes the tables of the handlers, run once whenever a worker opens the store: `CREATE TABLE IF NOT EXISTS …`.

    `SqliteStore(":memory:")` is for tests: it lasts as long as this object. Its file is `path`, as any other's.
    """

    def __init__(self, path: str | Path, *, keep: Seconds = KEEP, schema: str = "") -> None:
        place = f"SqliteStore({path!r})"
        if not isinstance(path, str | Path) or not str(path):
            raise ConfigurationError(f'{place}: it takes the path of its file, such as "billing.db"')
        if not isinstance(schema, str) or not sqlite3.complete_statement(f"{schema}\n;"):
            raise ConfigurationError(
                f"{place}: schema={schema!r}: it is SQL text, and ends where its last statement, comment and quote do"
            )
        self.lasting = str(path) != IN_MEMORY
        self.path = Path(path) if self.lasting else Path(mkdtemp(prefix="tidegate-"), "store.db")
        if not self.lasting:
            weakref.finalize(self, shutil.rmtree, self.path.parent, ignore_errors=True)
        self.keep = _seconds(keep, place)
        self.schema = schema

    def __repr__(self) -> str:
        return f"SqliteStore({str(self.path) if self.lasting else IN_MEMORY!r})"

    @property
    def transaction_type(self) -> type[SqliteTransaction]:
        """What handlers ask for."""
        return SqliteTransaction

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[OpenSqliteStore]:
        """Open the file, for one worker.

        Raises ConfigurationError where it cannot be opened, or is no database, and StoreError where another process
        kept its lock for 10 s: that may be tried again.
        """
        reading, writing = Line(self, in_thread=self.lasting), Line(self, in_thread=self.lasting)
        try:
            await writing.open(f"BEGIN IMMEDIATE;{TABLE}{self.schema}\n;COMMIT")
            await reading.open()
            yield OpenSqliteStore(self, reading, writing)
        finally:
            try:
                await writing.close()
            finally:
                await reading.close()


def _seconds(keep: Seconds, place: str) -> float:
    try:
        kept = span(keep)
    except (TypeError, ValueError, OverflowError):  # no number, or none of seconds
        kept = timedelta()
    if kept <= timedelta():
        raise ConfigurationError(
            f"{place}: keep={keep!r}: it must be above 0, in seconds or a timedelta, such as timedelta(days=7)"
        )
    return kept.total_seconds()


class Line:
    """One connection, used by one thread: what is asked for is done in its order, also when whoever asked is gone.

    Without a thread it is done at once, so that a test's steps come in the same order each time.
    """

    def __init__(self, store: SqliteStore, *, in_thread: bool) -> None:
        self._store = store
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidegate store") if in_thread else None

    async def do(self, work: Work[T]) -> T:
        """Do the work on the connection."""

        def done() -> T:
            if self._connection is None:
                raise StoreError(f"{self._store!r} is closed")
            return work(self._connection)

        return await self._run(done)

    async def do_when_free(self, work: Work[T]) -> T:
        """Do work that needs the file's lock, waiting for other processes; raises sqlite3.OperationalError after 10 s.

        The thread does not wait, so that to give up waiting takes no time.
        """
        return await self._when_free(lambda: self.do(work))

    async def _when_free(self, doing: Callable[[], Awaitable[T]]) -> T:
        nap, until = 0.001, asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await doing()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if asyncio.get_running_loop().time() > until:
                    error.add_note(f"{self._store!r}: another process held its lock for {PATIENCE:g} s")
                    raise
            await asyncio.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP)

    async def open(self, script: str = "") -> None:
        """Open the connection, and run the script, which makes the tables."""
        path = self._store.path

        def opened() -> None:
            # to change to WAL waits for nobody, whatever the timeout, so that all of this is tried again
            connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                # FULL: what was recorded is acked at the broker, so it must survive the power's loss too
                connection.execute(f"PRAGMA synchronous = {'FULL' if self._thread else 'OFF'}")
                connection.executescript(script)
            except BaseException:
                connection.close()
                raise
            self._connection = connection

        try:
            await self._when_free(lambda: self._run(opened))
        except sqlite3.Error as error:
            if self._store.schema and getattr(error, "sqlite_errorcode", 0) & 0xFF in WRONG_SQL:
                raise ConfigurationError(f"{self._store!r}: {error}; mend the SQL of its schema=…, {AGAIN}") from error
            told = f"{self._store!r}: {error}; "
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                slow = f"another process held its lock for {PATIENCE:g} s: a handler that is slow in its transaction?"
                raise StoreError(told + slow) from error
            raise ConfigurationError(
                f"{told}it needs a folder that is there and may be written to, and a file that is a SQLite database "
                "or new"
            ) from error

    async def roll_back(self) -> None:
        """Interrupt what runs, and roll back, if there is anything to; this is asked for before any wait."""

        def rolled_back() -> None:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

        self._interrupt()
        await self._run(rolled_back)

    async def close(self) -> None:
        """Interrupt what runs, and close the connection; what is not committed is rolled back."""

        def closed() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        self._interrupt()
        try:
            await self._run(closed)
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=False)

    def _interrupt(self) -> None:
        """End the statement that runs, as nothing is to come of it: it may take longer than anyone waits."""
        if self._thread is not None and self._connection is not None:
            self._connection.interrupt()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            return work()
        # shielded, as to cancel it would take it out of the order
        done = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(lambda done: done.exception())  # nobody else looks at it
            raise


class OpenSqliteStore:
    """The file as one worker has it open: one connection reads and one writes, so that reads never wait for a commit.

    Completions without a transaction of the handler's are committed many at a time.
    """

    def __init__(self, store: SqliteStore, reading: Line, writing: Line) -> None:
        self.store = store
        self.writing = writing
        self.turn = asyncio.Lock()
        """Whose turn it is to write, in this process."""
        self._reading = reading
        self._look_up = Lots(self._looked_up, asyncio.Lock())
        self.record = Lots(self._recorded, self.turn)

    async def completed(self, key: str) -> bool:
        """Tell whether the key was recorded within `keep`."""
        return await self._look_up(key)

    def completion(self, key: str | None) -> SqliteCompletion:
        """Return a completion that records the key."""
        return SqliteCompletion(self, key)

    def bounds(self) -> tuple[float, float]:
        """Return the time now, and that at or before which a completion is forgotten."""
        now = clock.now().timestamp()
        return now, now - self.store.keep

    async def _looked_up(self, keys: Sequence[str]) -> Sequence[bool]:
        _, old = self.bounds()
        return await self._reading.do(
            lambda connection: [connection.execute(LOOK, (key, old)).fetchone() is not None for key in keys]
        )

    async def _recorded(self, keys: Sequence[str]) -> Sequence[None]:
        now, old = self.bounds()

        def write(connection: sqlite3.Connection) -> Sequence[None]:
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(RECORD, [(key, now, old) for key in keys])
                connection.execute(FORGET, (old, FORGOTTEN_AT_ONCE))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return [None] * len(keys)

        return await self.writing.do_when_free(write)


class SqliteTransaction:
    """What an idempotent handler writes together with its completion: `transaction: SqliteTransaction`.

    It begins with the first statement, whatever that is, and holds the file's only write lock until the handler has
    returned and its events are stored: so whatever takes long comes before it. What it reads cannot change meanwhile.
    It has no `commit()` and no `rollback()`: Tidegate commits it then, and rolls it back where the handler raises.
    """

    def __init__(self, completion: SqliteCompletion) -> None:
        self._completion = completion

    async def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Execute one statement in a thread, and return its rows; `RETURNING` tells what a write changed.

        Raises what sqlite3 raises, and AlreadyCompleted at the first statement of a run whose message was completed
        meanwhile.
        """
        return await self._completion.execute(sql, parameters)

    if not TYPE_CHECKING:  # a type checker knows that there is nothing else

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"a SqliteTransaction has no {name}, only execute(); {ENDED}")


class SqliteCompletion:
    """A completion, the transaction that is committed with it, and its turn to write."""

    def __init__(self, store: OpenSqliteStore, key: str | None) -> None:
        self._store = store
        self._key = key
        self._beginning = asyncio.Lock()
        self._holds = False
        self._over = False
        self._completed_before = False
        self.used = False

    @property
    def transaction(self) -> SqliteTransaction:
        """What the handler gets."""
        return SqliteTransaction(self)

    async def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any]) -> list[tuple[Any, ...]]:
        """Execute one statement of the handler's."""

        def work(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            self._require(connection)
            try:
                return connection.execute(sql, parameters).fetchall()
            finally:
                self._over = self._over or not connection.in_transaction

        await self._begin()
        return await self._store.writing.do(work)

    async def commit(self) -> None:
        """Commit what was written and the completion; raises AlreadyCompleted where another run was first."""
        if self._completed_before:
            raise AlreadyCompleted(FIRST)
        if not self.used:
            # a statement that its handler waits for no more may be about to begin
            await self.rollback()
            if self._key is not None:
                await self._store.record(self._key)
            return
        now, old = self._store.bounds()

        def work(connection: sqlite3.Connection) -> None:
            self._require(connection)
            if self._completed_before:  # found by a statement that its handler did not wait for
                raise AlreadyCompleted(FIRST)
            if self._key is not None:
                connection.execute(RECORD, (self._key, now, old))
            connection.execute(FORGET, (old, FORGOTTEN_AT_ONCE))
            connection.execute("COMMIT")

        await self._store.writing.do(work)
        self._end()

    async def rollback(self) -> None:
        """Undo what was written, if it was not committed."""
        self._over = True
        if self._holds:
            try:
                # whoever has the turn next comes behind it
                await self._store.writing.roll_back()
            finally:
                self._end()

    def _end(self) -> None:
        self._over = True
        if self._holds:
            self._holds = False
            self._store.turn.release()

    def _require(self, connection: sqlite3.Connection) -> None:
        if self._over or not connection.in_transaction:
            raise StoreError(OVER)

    async def _begin(self) -> None:
        async with self._beginning:
            if not self._holds and not self._over:
                await self._store.turn.acquire()
                self._holds = True
                if self._over:  # rolled back while this waited for its turn
                    self._end()
            if self._over:
                raise StoreError(OVER)
            if not self.used:
                await self._store.writing.do_when_free(self._begun)
            if self._completed_before:
                await self.rollback()
                raise AlreadyCompleted(FIRST)

    def _begun(self, connection: sqlite3.Connection) -> None:
        # on the connection's thread, so that it is known also where nobody waits for it any more
        if self._over:
            raise StoreError(OVER)
        connection.execute("BEGIN IMMEDIATE")
        self.used = True
        _, old = self._store.bounds()
        self._completed_before = (
            self._key is not None and connection.execute(LOOK, (self._key, old)).fetchone() is not None
        )
