"""Keeps a link alive: connects, rotates over the hosts with backoff and jitter, and starts again when it is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from ...errors import AccessRefused
from .address import Address
from .channel import LinkLost
from .link import Link, LinkRefused


class Backoff:
    """Delays in seconds between two tries: from `first`, doubled up to `limit`, each shortened by chance."""

    def __init__(self, first: float = 0.05, limit: float = 3.0) -> None:
        self._first = first
        self._limit = limit
        self._next = first

    def __call__(self) -> float:
        """Return the next delay."""
        delay = self._next
        self._next = min(self._next * 2, self._limit)
        return delay * random.uniform(0.5, 1)

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next = self._first


class Supervisor:
    """One link that is there again soon after it was lost. `keep` runs for as long as it is needed."""

    def __init__(self, addresses: Sequence[Address], purpose: str, logger: Any) -> None:
        self._addresses = addresses
        self._purpose = purpose
        self._logger = logger
        self._link: Link | None = None
        self._refused: AccessRefused | None = None
        self.trouble = ""
        self._changed = asyncio.Event()

    async def keep(self) -> None:
        """Connect, and connect again; ends by being cancelled, and closes its link then."""
        backoff, tries, lost_at = Backoff(), 0, 0.0
        clock = asyncio.get_running_loop().time
        while True:
            address = self._addresses[tries % len(self._addresses)]
            tries += 1
            try:
                link = await Link.connect(address)
            except LinkRefused as error:
                self._refused = AccessRefused(str(error))
                self._tell()
                await asyncio.sleep(backoff())
                continue
            except LinkLost as error:
                self.trouble = str(error)
                if not lost_at:
                    lost_at = clock()
                    self._logger.warning("broker unreachable", link=self._purpose, error=str(error))
                await asyncio.sleep(backoff())
                continue
            if lost_at:
                self._logger.info("broker reachable", link=self._purpose, after=round(clock() - lost_at, 1))
            self._link, self._refused, self.trouble, lost_at = link, None, "", 0.0
            self._tell()
            try:
                await link.closed.wait()
            finally:
                self._link = None
                await link.aclose()
            backoff.reset()
            lost_at, self.trouble = clock(), str(link.error)
            self._logger.warning("connection lost", link=self._purpose, error=str(link.error))

    async def link(self) -> Link:
        """Return the link, waiting for it without a bound. Raises AccessRefused while the broker says a definite no."""
        while self._link is None or self._link.error is not None:
            if self._refused is not None:
                raise self._refused
            self._changed.clear()
            await self._changed.wait()
        return self._link

    def _tell(self) -> None:
        self._changed.set()
