"""The load, in processes: `python -m benchmarks.cluster.load publisher|worker FOLDER RATE`, until SIGTERM.

The publisher writes down each event whose publish returned, and how long that took; the workers write down what each
handler did. `mended` in the folder ends what is wrong with the handler that gives up.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from bus import Bus, Context, Event, PublishError, Reject, Service, client, discovery, fixed
from bus import settings as environment
from bus.logs import configure
from bus.middleware.logging import logging
from bus.worker import Worker


PARCELS: Final = tuple("abcdefghij")
"""The keys of the ordered handler; each is published to by one task, which awaits."""
HANDLERS: Final = ("at_once", "in_order", "retried", "given_up")
NAMESPACE: Final = "yard"


class Moved(Event, type="parcel.moved"):
    """A parcel is at its next stop."""

    parcel: str
    number: int


class Book:
    """A file of lines that several processes append to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *words: object) -> None:
        """Append a line, with the time at its end; the clock is the machine's."""
        os.write(self._file, f"{' '.join(map(str, words))} {time.monotonic():.4f}\n".encode())


def yard(folder: Path) -> Service:
    """Return a service that hears of every move in four ways."""
    service, book, mended = Service(NAMESPACE, concurrency=32), Book(folder / "handled"), folder / "mended"

    @service.on(Moved)
    async def at_once(moved: Moved) -> None:
        book.note("at_once", moved.parcel, moved.number)

    @service.on(Moved, ordered_by="parcel", retry=fixed(100, 0.05))
    async def in_order(moved: Moved, context: Context) -> None:
        if moved.number % 7 == 0 and context.attempt == 1:
            raise ConnectionError("once")
        book.note("in_order", moved.parcel, moved.number)

    @service.on(Moved, retry=fixed(100, 0.2))
    async def retried(moved: Moved, context: Context) -> None:
        if moved.number % 5 == 0 and context.attempt == 1:
            raise ConnectionError("once")
        book.note("retried", moved.parcel, moved.number)

    @service.on(Moved)
    async def given_up(moved: Moved) -> None:
        if moved.number % 10 == 0 and not mended.exists():
            raise Reject("not yet")
        book.note("given_up", moved.parcel, moved.number)

    return service


async def work(folder: Path, stop: asyncio.Event) -> None:
    """Be a worker."""
    settings, service = environment.read(), yard(folder)
    async with client.transport(settings) as transport:
        events = discovery.named([service])
        worker = Worker(transport, [service], app="y", events=events, settings=settings, log=logging())
        await worker.run(stop, lambda: print("up", flush=True))


async def publish(folder: Path, rate: float, stop: asyncio.Event) -> None:
    """Publish so many events a second."""
    settings, book = environment.read(), Book(folder / "published")
    async with client.transport(settings) as transport, asyncio.TaskGroup() as tasks:
        bus = Bus(transport, settings, "/yard")
        for parcel in PARCELS:
            tasks.create_task(moving(bus, book, parcel, len(PARCELS) / rate, stop))
        print("up", flush=True)


async def moving(bus: Bus, book: Book, parcel: str, period: float, stop: asyncio.Event) -> None:
    """Publish the moves of a parcel, one after the other."""
    clock = asyncio.get_running_loop().time
    for number in itertools.count(1):
        if stop.is_set():
            return
        began = clock()
        try:
            await bus.publish(Moved(parcel=parcel, number=number))
        except PublishError:
            book.note("failed", parcel, number, f"{clock() - began:.4f}")
        else:
            book.note("stored", parcel, number, f"{clock() - began:.4f}")
        await asyncio.sleep(max(began + period - clock(), 0))


async def main(kind: str, folder: Path, rate: float) -> None:
    """Be what was asked for until SIGTERM."""
    configure("info", "json")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await (work(folder, stop) if kind == "worker" else publish(folder, rate, stop))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
