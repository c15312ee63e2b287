"""The store that docs/idempotency.md shows for a database of several machines, on a pool of this test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.test_docs import ROOT, blocks


class Connection:
    def __init__(self) -> None:
        self.statements: list[str] = []

    async def execute(self, sql: str) -> None:
        await asyncio.sleep(0)
        self.statements.append(sql)

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        await self.execute(sql)
        return [arguments]


class Pool:
    def __init__(self) -> None:
        self.all: list[Connection] = []
        self.out: list[Connection] = []

    async def acquire(self) -> Connection:
        await asyncio.sleep(0)
        self.all.append(Connection())
        self.out.append(self.all[-1])
        return self.all[-1]

    async def release(self, connection: Connection) -> None:
        self.out.remove(connection)


def completion(pool: Pool) -> Any:
    (code,) = [code for _, code in blocks(ROOT / "docs" / "idempotency.md", "python") if "class PostgresStore" in code]
    names: dict[str, Any] = {}
    exec(code.partition('Service("orders"')[0], names)
    return names["PostgresCompletion"](pool, "key")


async def test_statements_at_once_are_of_one_transaction_and_its_connection_goes_back() -> None:
    pool = Pool()
    subject = completion(pool)
    await asyncio.gather(subject.transaction.fetch("A"), subject.transaction.fetch("B"))
    await subject.commit()
    await subject.rollback()
    assert pool.out == []
    ((begin, *_, commit),) = [connection.statements for connection in pool.all]
    assert (begin, commit) == ("BEGIN", "COMMIT")


async def test_a_statement_after_the_end_of_its_run_is_refused_and_takes_no_connection() -> None:
    for end in ("commit", "rollback"):
        pool = Pool()
        subject = completion(pool)
        await getattr(subject, end)()
        with pytest.raises(RuntimeError, match="the transaction is over"):
            await subject.transaction.fetch("late")
        assert pool.out == []


async def test_a_statement_that_begins_as_its_run_is_rolled_back_leaves_no_connection() -> None:
    pool = Pool()
    subject = completion(pool)
    late = asyncio.create_task(subject.transaction.fetch("late"))
    await asyncio.sleep(0)
    await subject.rollback()
    await asyncio.wait([late])
    late.exception()
    assert pool.out == []
