"""What is left at the broker: dead letters, messages in queues, and who consumes them."""

from __future__ import annotations

import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import aio_pika

from bus import Settings, client

from .book import ANY, Work
from .events import DOOMED, IDEMPOTENT, WANTED
from .world import World, blocking


CONSUMING: Final = (
    "[{element(4, amqqueue:get_name(Q)), length(lists:usort([I || C <- rabbit_amqqueue:consumers(Q), "
    "P <- [element(1, C)], [_] = I <- [rpc:call(node(P), rabbit_channel, info, [P, [connection]])]]))} "
    "|| Q <- rabbit_amqqueue:list()]."
)
"""Tells how many connections consume each queue; of an ordered one, those that wait for their turn, too.

A channel is asked by its own node, as it is given a time by the clock of the node that asks.
"""
HANDLERS: Final = {handler for handlers in WANTED.values() for handler in handlers} | set(DOOMED.values())


def effects(folder: Path) -> Mapping[Work, list[str]]:
    """Return the runs that the idempotent handler's store has an effect of, by their event."""
    runs: dict[Work, list[str]] = defaultdict(list)
    with closing(sqlite3.connect(folder / "once.db")) as store:
        for ref, run in store.execute("SELECT ref, run FROM effects"):
            runs[IDEMPOTENT, ref].append(run)
    return runs


async def dead_letters(world: World) -> dict[Work, float]:
    """Return what handlers gave up on, and when each failed last by the clock of the ledgers; the oldest counts."""
    letters: dict[Work, float] = {}
    begun = time.time() - time.monotonic()
    async with client.transport(Settings(url=world.url)) as transport:
        for service in sorted({handler.partition(".")[0] for handler in HANDLERS}):
            async for letter in transport.dead_letters.browse(service):
                work = (f"{letter.service}.{letter.handler}", letter.message.correlation_id or "")
                failed = letter.failure.last_failed_at.timestamp() - begun
                letters[work] = min(failed, letters.get(work, failed))
    return letters


async def unconsumed(world: World) -> list[str]:
    """Return which handlers' queues are not consumed by every worker, on one connection each."""
    told = await blocking(world.nodes[0].ctl, "eval", CONSUMING)
    connections = dict(re.findall(r'<<"([^"]+)">>,(\d+)', told))
    return sorted(queue for queue in HANDLERS if connections.get(queue) != str(len(world.workers)))


async def waiting(world: World) -> dict[str, int]:
    """Return how many messages are in each queue that is not empty; streams keep theirs."""
    listed = await blocking(world.nodes[0].ctl, "list_queues", "--no-table-headers", "name", "type", "messages")
    rows = (line.split("\t") for line in listed.splitlines())
    return {name: int(messages) for name, type, messages in rows if type != "stream" and int(messages or 0)}


async def in_queues(world: World, names: Iterable[str]) -> set[Work]:
    """Return what is in queues that nobody consumes; it stays there."""
    found: set[Work] = set()
    async with await aio_pika.connect(world.nodes[0].url()) as connection, connection.channel() as channel:
        for name in names:
            queue = await channel.get_queue(name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:
                # a retry waits under the key of its handler's queue
                handler = name if name in HANDLERS else (message.routing_key or "").partition(".")[2]
                found.add((handler if handler in HANDLERS else ANY, str(message.correlation_id)))
    return found
