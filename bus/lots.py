"""Lots: what is asked for while one lot is under way is done together, as the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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

    async def __call__(self, item: K) -> V:
        """Return what the work came to for this item."""
        mine: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._waiting[mine] = item
        try:
            async with self._turn:
                if not mine.done():
                    await self._do()
        except BaseException:
            self._waiting.pop(mine, None)
            mine.cancel()
            raise
        return mine.result()

    async def _do(self) -> None:
        lot, self._waiting = self._waiting, {}
        try:
            results = await self._work([*lot.values()])
        except asyncio.CancelledError:
            # the others did not ask for that: one of them takes over
            self._waiting = lot | self._waiting
            raise
        except Exception as error:
            for asked in lot:
                if not asked.done():
                    asked.set_exception(error)
                    asked.exception()  # whoever was cancelled meanwhile does not look at it
            return
        for asked, result in zip(lot, results, strict=True):
            if not asked.done():
                asked.set_result(result)
