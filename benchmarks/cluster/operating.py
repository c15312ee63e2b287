"""An operator who lists and replays the dead letters while things break."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from bus import Letter, Settings, TidegateError, client

from .ledger import Move, rejected
from .load import NAMESPACE


AT_ONCE: Final = 3
WITHIN: Final = 180.0


def moved(letter: Letter) -> tuple[str, Move]:
    """Return the handler that gave up, and the move on which it did."""
    told = json.loads(letter.message.body)
    return letter.handler, (told["parcel"], told["number"])


def unexpected(letters: Iterable[Letter]) -> set[tuple[str, Move]]:
    """Return the handlers and moves of letters that should not be."""
    return {(handler, move) for handler, move in map(moved, letters) if handler != "given_up" or not rejected(move)}


class Told:
    """What came of an operator's commands."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.longest = 0.0
        self.listed = 0

    def __str__(self) -> str:
        failed = ", ".join(f"{count} × {error}" for error, count in self.errors.items()) or "none failed"
        return (
            f"listed {self.done['list']} times, replayed {self.done['replay']}; {failed}; "
            f"{self.longest:.1f} s at most from one success to the next"
        )


class Operator:
    """Acts on the letters, each time as a command does: on a connection of its own.

    `unexpected` are the handlers and moves of letters that should not be; to replay one must not hide it.
    """

    def __init__(self, url: str) -> None:
        self._settings = Settings(url=url)
        self.unexpected: set[tuple[str, Move]] = set()

    async def letters(self) -> list[Letter]:
        """Return the open letters."""
        async with client.transport(self._settings) as transport:
            letters = [letter async for letter in transport.dead_letters.browse(NAMESPACE)]
        self.unexpected |= unexpected(letters)
        return letters

    async def replay(self, letters: list[Letter]) -> int:
        """Replay letters, each until that has worked or somebody else did; return how many were closed before."""
        closed = 0
        async with client.transport(self._settings) as transport, asyncio.timeout(WITHIN):
            for letter in letters:
                try:
                    await transport.dead_letters.replay(letter)
                except LookupError:
                    closed += 1
        return closed

    @asynccontextmanager
    async def acting(self) -> AsyncIterator[Told]:
        """List and replay meanwhile."""
        told, over = Told(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._act(told, over))
            yield told
            over.set()

    async def _act(self, told: Told, over: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        while not over.is_set():
            try:
                found = await self.letters()
                told.done["list"] += 1
                await self.replay(found[:AT_ONCE])
                told.done["replay"] += len(found[:AT_ONCE])
            except TidegateError as error:
                told.errors[type(error).__name__] += 1
            else:
                told.longest, last = max(told.longest, clock() - last), clock()
            await asyncio.sleep(0.2)
