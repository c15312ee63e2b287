"""A publisher under attack, until SIGTERM: `python -m tests.chaos.publisher NAME`.

A task for each event publishes one after the other. What it is not sure of, it publishes again with its id if the
events must come in order, and leaves alone otherwise: such an event may have been stored, or not.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bus import Bus, Event, PublishError, connect

from .events import Doomed, Entry, Flaky, Later, Order, Task
from .ledger import Ledger, of_this_process
from .orphan import end_with_parent


@dataclass(frozen=True)
class Stream:
    """One task's events: how to make one, seconds between two, whether it is delayed, and published until stored."""

    name: str
    make: Callable[[int], Event]
    every: float
    delayed: bool = False
    until_stored: bool = False


def streams(publisher: str) -> list[Stream]:
    """Return what a publisher publishes."""

    def entry(account: str) -> Stream:
        def make(number: int) -> Event:
            return Entry(account=account, number=number)

        return Stream(account, make, 0.1, until_stored=True)

    return [
        Stream("task", lambda number: Task(number=number), 0.1),
        Stream("flaky", lambda number: Flaky(number=number), 0.15),
        Stream("order", lambda number: Order(number=number), 0.1),
        Stream("later", lambda number: Later(number=number), 0.2, delayed=True),
        Stream("doomed", lambda number: Doomed(number=number), 1.0),
        entry(f"{publisher}-a"),
        entry(f"{publisher}-b"),
    ]


async def publish(bus: Bus, ledger: Ledger, stream: Stream, publisher: str, stop: asyncio.Event) -> None:
    """Publish the events of a stream, one after the other."""
    number = 0
    while not stop.is_set():
        number += 1
        event = stream.make(number)
        ref = f"{publisher}.{stream.name}.{number}"
        delay = random.uniform(0.5, 4) if stream.delayed else 0.0
        type = event.__class__.__schema__.type
        ledger.write("publishing", ref=ref, type=type, stream=stream.name, number=number, delay=delay)
        while not await stored(bus, ledger, event, ref, delay) and stream.until_stored and not stop.is_set():
            pass
        await asyncio.sleep(stream.every * random.uniform(0.5, 1.5))


async def stored(bus: Bus, ledger: Ledger, event: Event, ref: str, delay: float) -> bool:
    """Publish once; tell whether the event is stored for sure."""
    try:
        await bus.publish(event, id=ref, delay=delay)
    except PublishError as error:
        ledger.write("unsure", ref=ref, error=type(error).__name__, told=str(error)[:200])
        return False
    ledger.write("confirmed", ref=ref)
    return True


async def main(publisher: str) -> None:
    """Publish until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ledger = of_this_process()
    async with connect(source=f"/chaos/{publisher}") as bus, asyncio.TaskGroup() as tasks:
        for stream in streams(publisher):
            tasks.create_task(publish(bus, ledger, stream, publisher, stop))


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(sys.argv[1]))
