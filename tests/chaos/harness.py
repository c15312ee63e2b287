"""The attack: everything is started, faults come by their schedule and are healed, and the books are balanced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from .book import Book, destroyed
from .events import WANTED
from .faults import Planned
from .injecting import injected, queue
from .ledger import Reader
from .leftovers import HANDLERS, dead_letters, effects, in_queues, unconsumed, waiting
from .reconcile import reconcile
from .recovery import recoveries
from .result import Result, result
from .world import World, blocking, opened


STARTS_WITHIN: Final = 300.0
OLD_ENOUGH: Final = 1.5
"""Seconds after which a new quorum queue survives the kill of its only node."""
RECOVERS_WITHIN: Final = 150.0
EMPTY_WITHIN: Final = 90.0
NAMED: Final = 5
"""How many of those who are behind a problem names."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks into ledgers, which are files of other processes."""

Say: TypeAlias = Callable[[str], None]


class Attack:
    """One attack on one world."""

    def __init__(self, world: World, folder: Path, say: Say, within: float) -> None:
        self.book = Book()
        self._world = world
        self._reader = Reader(folder)
        self._say = say
        self._within = within

    async def until(self, behind: Callable[[], Sequence[str]], what: str, within: float) -> bool:
        """Wait until the book shows that nobody is behind; it is a problem of the run if somebody is after so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while True:
                    self.look()
                    if not behind():
                        return True
                    await asyncio.sleep(LOOK_EVERY)
        told = f"not {what} within {within:g} s: {', '.join(behind()[:NAMED])}"
        self._world.ledger.write("problem", told=told)
        self._say(told)
        self.look()
        return False

    def look(self) -> None:
        """Enter into the book what the ledgers have new."""
        self.book.add(self._reader.news())

    def behind_since(self, since: float, gone: str) -> Callable[[], Sequence[str]]:
        """Return what tells who did nothing new since, and which of what was published before is not done.

        Everybody is each handler, whichever worker it is in, each worker, whichever handler of it, and each publisher.
        What was in a queue that is gone is nobody's.
        """
        everybody = {handler for handlers in WANTED.values() for handler in handlers}
        everybody |= {process.name for process in (*self._world.workers, *self._world.publishers)}

        def behind() -> Sequence[str]:
            owed = (work for work in self.book.open if work[0] != gone and self.book.published[work[1]].at <= since)
            return sorted(one for one in everybody if self.book.newest[one] <= since) + sorted(map(" of ".join, owed))

        return behind

    async def inject(self, fault: Planned) -> None:
        """Inject one fault, and wait until everything works again."""
        self._say(f"{fault.kind} ({fault.lasts:.1f} s, {fault.pick})")
        gone = queue(fault) if fault.kind == "queue deleted" else ""
        self._world.ledger.write("fault", kind=fault.kind, deleted=gone)
        async with injected(self._world, fault):
            await asyncio.sleep(fault.lasts)
        healed = self._world.ledger.write("healed")["at"]
        if not await self.until(self.behind_since(healed, gone), f"all as before {fault.kind}", self._within):
            self.book.open.clear()  # what did not come by now is waited for no more; the verdict tells of it
        self.book.open.difference_update(set(destroyed(self.book)) if gone else ())
        await asyncio.sleep(fault.calm)

    async def drain(self) -> None:
        """Stop the publishers, wait until nothing is owed, and stop the workers."""
        await asyncio.gather(*(publisher.finish() for publisher in self._world.publishers))
        await self.until(lambda: sorted(map(" of ".join, self.book.open)), "all done", RECOVERS_WITHIN)
        with suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_WITHIN):
                while await waiting(self._world):
                    await asyncio.sleep(LOOK_EVERY)
        await self.consumed()
        await asyncio.gather(*(worker.finish() for worker in self._world.workers))

    async def consumed(self) -> None:
        """Wait until each worker consumes each queue: its effects do not show that, as others may take everything."""
        lacking = sorted(HANDLERS)
        with suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_WITHIN):
                while lacking := await unconsumed(self._world):
                    await asyncio.sleep(LOOK_EVERY)
        for name in lacking:
            self._world.ledger.write("problem", told=f"not every worker consumes {name} in the end")

    async def leftovers(self) -> list[str]:
        """Return the queues in which something is left, and enter into the book what should not be."""
        left = await waiting(self._world)
        for name, messages in left.items():
            self._world.ledger.write("problem", told=f"{messages} messages are left in {name}")
        self.look()
        return list(left)


async def attack(
    faults: Iterable[Planned],
    seconds: float,
    folder: Path,
    say: Say,
    *,
    cluster: bool = False,
    workers: int = 3,
    publishers: int = 2,
    within: float = RECOVERS_WITHIN,
) -> Result:
    """Attack for so many seconds, or until there are no more faults; return what became of everything.

    What is not well again `within` so many seconds after a fault is no longer waited for, and a problem.
    """
    async with opened(folder, cluster=cluster, workers=workers, publishers=publishers) as world:
        under = Attack(world, folder, say, within)
        if not await under.until(under.behind_since(0, ""), "a first success of everybody", STARTS_WITHIN):
            raise RuntimeError(f"it did not come to work before the first fault; the logs in {folder} may say why")
        await asyncio.sleep(OLD_ENOUGH)
        begin = time.monotonic()
        for fault in faults:
            await under.inject(fault)
            if time.monotonic() > begin + seconds:
                break
        taken = time.monotonic() - begin
        await under.drain()
        letters = await dead_letters(world)
        left = await in_queues(world, await under.leftovers())
        version = await blocking(world.nodes[0].version)
    verdict = reconcile(under.book, letters, left, effects(folder))
    return result(verdict, recoveries(under.book), broker=version, cluster=cluster, seconds=taken)
