"""A worker process that kills itself at a marked point: `python -m tests.contract.doomed FILE POINT`."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from bus import Service, SqliteStore, SqliteTransaction, client, discovery, fixed
from bus import settings as environment
from bus.logs import configure
from bus.middleware.logging import logging
from bus.store.sqlite import SqliteCompletion
from bus.worker import Worker

from .stage import Placed, Shipped


SCHEMA = "CREATE TABLE IF NOT EXISTS effects (number INTEGER)"


def effects(path: Path) -> list[int]:
    """Return the effects that were committed."""
    with sqlite3.connect(path) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM effects ORDER BY rowid")]


def billing(store: SqliteStore) -> Service:
    """Return a service whose one handler writes an effect for each message, one after the other."""
    service = Service("billing", concurrency=1, store=store)

    @service.on(Placed, idempotent=True, retry=fixed(10, 0.1))
    async def refund(placed: Placed, transaction: SqliteTransaction) -> Shipped:
        await transaction.execute("INSERT INTO effects VALUES (?)", [placed.number])
        return Shipped(number=placed.number)

    return service


def dying(commit: Callable[[SqliteCompletion], Awaitable[None]], point: str) -> Callable[..., Awaitable[None]]:
    """Return a commit that is the end of its process."""

    async def committed(completion: SqliteCompletion) -> None:
        if point == "after":
            await commit(completion)
        os.kill(os.getpid(), signal.SIGKILL)

    return committed


async def main(path: Path, point: str) -> None:
    settings = environment.read()
    configure(settings.log_level, "json")
    if point != "never":
        SqliteCompletion.commit = dying(SqliteCompletion.commit, point)  # type: ignore[method-assign, assignment]
    stop, service = asyncio.Event(), billing(SqliteStore(path, schema=SCHEMA))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with client.transport(settings) as transport:
        events = discovery.named([service])
        await Worker(transport, [service], app="m", events=events, settings=settings, log=logging()).run(stop)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
