"""Lots: what is asked for while one lot is under way is done together, as the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar


K = TypeVar("K")
V = TypeVar("V")


class Lots(Generic[K, V]):
    """Does a kind of work for many who ask at once: the first of them does it for all, in `turn`.

    `work` may be done again for the same item, if whoever did it was cancelled.
    """

    def __init__(self, work: Callable[[Sequence[K]], Awaitable[Sequence[V]]], turn: asyncio.Lock) -> None:
        self._work = work
        self._turn = turn
        self._waiting: dict[asyncio.Future[V], K] = {}
        self._led = False

    async def __call__(self, item: K) -> V:
        """Return what the work came to for this item."""
        while True:
            mine: asyncio.Future[V] = asyncio.get_running_loop().create_future()
            self._waiting[mine] = item
            if not self._led:
                await self._lead(mine)
            try:
                return await mine
            except Deserted:
                continue
            finally:
                self._waiting.pop(mine, None)

    async def _lead(self, mine: asyncio.Future[V]) -> None:
        """Wait for the turn, and do all that was asked for by then."""
        self._led = True
        lot = self._waiting
        try:
            async with self._turn:
                self._led, self._waiting = False, {}
                await self._do(lot)
        except BaseException:
            mine.cancel()
            if lot is self._waiting:
                self._led, self._waiting = False, {}
            _tell(lot, Deserted())
            raise

    async def _do(self, lot: dict[asyncio.Future[V], K]) -> None:
        # whoever was cancelled waits no more
        asked = {mine: item for mine, item in lot.items() if not mine.done()}
        try:
            results = await self._work([*asked.values()])
        except Exception as error:
            _tell(asked, error)
            return
        for mine, result in zip(asked, results, strict=True):
            if not mine.done():
                mine.set_result(result)


class Deserted(Exception):
    """Whoever did the work for all was cancelled: one of the others takes over."""


def _tell(asked: Iterable[asyncio.Future[V]], error: Exception) -> None:
    for each in asked:
        if not each.done():
            each.set_exception(error)
            each.exception()  # whoever was cancelled meanwhile does not look at it
