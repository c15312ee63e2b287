"""How long `topology` takes on a broker with 600 queues: `python -m benchmarks.topology`, on a private broker.

50 services of 5 handlers with 6 retry steps each, and their dead letters: 600 queues. Then a version in which every
handler has another name, so that 250 queues are left over. Beside it, folding a record of 1,000 entries.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from bus import Settings, client
from bus.transport import Subscription, Transport
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.plan import declarations
from bus.transport.rabbitmq.record import Record
from bus.transport.rabbitmq.stream import Streams
from bus.transport.rabbitmq.topology import Names


T = TypeVar("T")
SERVICES, HANDLERS = 50, 5
DELAYS = tuple(timedelta(seconds=seconds) for seconds in (0.5, 2, 8, 10, 32, 128))
ENTRIES = 1_000


def app(version: str) -> list[Subscription]:
    """Return the subscriptions of a version."""
    return [
        Subscription(service=f"s{s}", handler=f"{version}_{h}", patterns=(f"bench.placed_{h}",), delays=DELAYS)
        for s in range(SERVICES)
        for h in range(HANDLERS)
    ]


async def timed(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Do something, and print how long it took."""
    begun = time.perf_counter()
    done = await work()
    print(f"{what:<44} {time.perf_counter() - begun:8.2f} s", flush=True)
    return done


async def fill(settings: Settings) -> None:
    """Append entries of another app to the record, each of another version."""
    names, streams = Names(), Streams(addresses(settings), settings.publish_timeout)
    one = [replace(each, service="folded") for each in app("old")[:HANDLERS]]
    record = Record(streams, names)
    for number in range(ENTRIES):
        changed = [replace(one[0], patterns=(f"bench.placed_{number}",)), *one[1:]]
        (declared,) = declarations(names, "folded", changed)
        await record.declared(declared, "bench:1")
    await streams.aclose()


async def measure(transport: Transport, settings: Settings) -> None:
    """Show, apply, show, prune."""
    topology, old, new = transport.topology, app("old"), app("new")
    await timed("show, nothing is there yet", lambda: topology.survey("bench", old))
    await timed("apply, first", lambda: topology.apply("bench", old))
    await timed("apply, again", lambda: topology.apply("bench", old))
    found = await timed("show", lambda: topology.survey("bench", old))
    queues = [part for part in found.declared if part.kind in ("queue", "step", "letters")]
    print(f"  {len(queues)} queues of {len(found.declared)} parts, {len(found.missing)} missing")
    await timed("a worker's note, nothing new", lambda: topology.note("bench", "bench:1", old))
    await topology.apply("bench", new)
    found = await timed("show, 250 queues left over", lambda: topology.survey("bench", new))
    done = await timed("prune of 250 queues", lambda: topology.prune("bench", new, found.left))
    print(f"  {sum(not each.kept for each in done)} of {len(found.left)} removed")
    await fill(settings)
    await timed(f"show with {ENTRIES} entries more in the record", lambda: topology.survey("bench", new))


def main() -> None:
    """Measure on a broker that is started for it."""
    from tests.broker.node import Node

    node = Node()
    try:
        node.start()

        async def run() -> None:
            settings = Settings(url=node.url())
            async with client.transport(settings) as transport:
                await measure(transport, settings)

        asyncio.run(run())
    finally:
        node.close()


if __name__ == "__main__":
    main()
