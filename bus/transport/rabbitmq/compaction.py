"""Erasing closed letters: a stream forgets nothing, so what is open is carried into a new generation of it.

The order makes it safe to be cut off anywhere, and to be run again: the next generation takes new letters before the
older one is sealed, is announced after that, and everything open is confirmed in it before the older one is deleted.
Letters that came to both, or were carried twice, fold into one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pamqp import commands

from . import copies, records
from .alone import alone, ask
from .channel import Channel, Parcel
from .desk import SEAL, Desk
from .fold import FAILED_AGAIN, KEY, LETTER, TURN, Fold, Row
from .records import ENTRY_KEY, Entry
from .stream import Streams, mark
from .topology import ROUTED_WITHIN, STREAM, Names, letter_bindings


AT_ONCE: Final = 200
"""Entries that are confirmed together."""
DELETED_WITHIN: Final = 60.0


async def compact(desk: Desk, streams: Streams, names: Names) -> tuple[int, int]:
    """Compact the letters of a service; return how many are left and how many were erased.

    Raises LookupError where somebody else compacts them.
    """
    taken = f"the dead letters of {desk.service} are being compacted by somebody else"
    async with alone(streams, f"{names.dead(desk.service)}.compacting", taken) as channel:
        desk.from_first = True
        try:
            fold = await desk.look()
            if not desk.generations:
                raise LookupError(f"{desk.service} has no dead letters here: no worker of it ever ran")
            closed = {row.key for row in fold.rows.values() if not fold.is_open(row)}
            if len(desk.generations) > 1:
                # an earlier one was cut off: what it has deleted by its end was closed then
                await _carry_on(channel, desk, streams, names)
            if any(not desk.fold.is_open(row) for row in desk.fold.rows.values()):
                await _begin(channel, desk, streams, names)
                await _carry_on(channel, desk, streams, names)
            fold = desk.fold
            return sum(map(fold.is_open, fold.rows.values())), len(closed - fold.rows.keys())
        finally:
            desk.from_first = False


async def _begin(channel: Channel, desk: Desk, streams: Streams, names: Names) -> None:
    """Have a next generation: it takes new letters, then the older one is sealed, then it is announced."""
    older, newer = desk.stream(desk.newest), desk.stream(desk.newest + 1)
    await ask(channel, commands.Queue.Declare(queue=newer, durable=True, arguments=STREAM))
    for stream in (older, newer):
        # by a key of ours: a worker that starts as this is announced unbinds the older one by its own key
        await ask(channel, commands.Queue.Bind(queue=stream, exchange=names.dead(desk.service), routing_key=""))
    await streams.store([mark(older, SEAL)])
    await ask(channel, commands.Exchange.Declare(exchange=newer, exchange_type="fanout", durable=True))
    await desk.look()


async def _carry_on(channel: Channel, desk: Desk, streams: Streams, names: Names) -> None:
    """Carry what is open out of every older generation into the newest, and delete them."""
    newest = desk.newest
    await ask(channel, commands.Exchange.Declare(exchange=desk.stream(newest), exchange_type="fanout", durable=True))
    older = [generation for generation in desk.generations if generation < newest]
    for generation in older:
        # what came to it after the cut is in the newest too, which was bound before
        await desk.cut(generation)
        stream = desk.stream(generation)
        for exchange, key in letter_bindings(names, desk.service, stream):
            await ask(channel, commands.Queue.Unbind(queue=stream, exchange=exchange, routing_key=key))
    # what was routed to it before that is on its way
    await asyncio.sleep(ROUTED_WITHIN)
    fold = await desk.look()
    into = desk.stream(newest)
    marks = [mark(into, noted.headers()) for noted in fold.kept(newest)]
    for at in range(0, len(marks), AT_ONCE):
        await streams.store(marks[at : at + AT_ONCE])
    own = f"{newest}-"
    rows = [r for r in fold.rows.values() if fold.is_open(r) and r.carried < newest and not r.id.startswith(own)]
    for at in range(0, len(rows), AT_ONCE):
        some = [_carried(into, fold, row, entry) async for row, entry in desk.entries(rows[at : at + AT_ONCE])]
        await streams.store(some)
    for generation in older:
        await ask(channel, commands.Queue.Delete(queue=desk.stream(generation)), DELETED_WITHIN)
    await desk.look()


def _carried(into: str, fold: Fold, row: Row, entry: Entry) -> Parcel:
    message, failure = records.read(entry, fold.service, fold.prefix)
    added = {LETTER: row.id, KEY: row.key.hex(), TURN: row.turn, ENTRY_KEY: entry.first_key}
    added |= {FAILED_AGAIN: row.failed_again} if row.failed_again else {}
    received = entry.received
    flags, properties, body = copies.carried(received.header, received.body, message, failure, added)
    return Parcel(row.id, "", into, flags, properties, body, mandatory=True)
