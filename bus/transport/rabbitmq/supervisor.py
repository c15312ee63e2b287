"""Keeps a link alive: connects, rotates over the hosts with backoff and jitter, and starts again when it is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

from ...errors import AccessRefused
from .address import Address
from .channel import LinkLost
from .link import Link, LinkRefused


FIRST_PATIENCE: Final = 2.0
"""Seconds that each host has to answer in the first round over the hosts; doubled each round, up to `PATIENCE`."""
PATIENCE: Final = 10.0
STEADY: Final = 5.0
"""Seconds of a link's life after which the next loss is an outage of its own, and not more of the same."""


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
    """One link that is there again soon after it was lost. `keep` runs for as long as it is needed.

    `before` is another with the same login: whoever it let in was let in.
    """

    def __init__(
        self, addresses: Sequence[Address], purpose: str, logger: Any, before: Supervisor | None = None
    ) -> None:
        self._addresses = addresses
        self._purpose = purpose
        self._logger = logger
        self._before = before
        self._link: Link | None = None
        self._refused: AccessRefused | None = None
        self._reached = False
        self._tries = 0
        self._lost_at: float | None = None
        self._trouble = ""
        self._told: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def hosts(self) -> int:
        """How many hosts it may connect to."""
        return len(self._addresses)

    @property
    def let_in(self) -> bool:
        """Whether the login was ever taken: then a refusal is an outage, and no mistake of the user's."""
        return self._reached or (self._before is not None and self._before.let_in)

    def leave(self, address: Address, why: str) -> None:
        """Go on at the next host, if this is the one that is connected to."""
        if self._link is not None and self._link.address == address:
            self._link.give_up(why)

    @property
    def trouble(self) -> str:
        """What is wrong with the link; empty while nothing is."""
        return self._link.blocked if self._link is not None else self._trouble

    async def keep(self) -> None:
        """Connect, and connect again; ends by being cancelled, and closes its link then."""
        backoff, clock = Backoff(), asyncio.get_running_loop().time
        while True:
            link, since = await self._reach(backoff), clock()
            self._link, self._refused, self._reached, self._lost_at = link, None, True, None
            self._told.clear()
            self._tell()
            try:
                await link.closed.wait()
            finally:
                self._link = None
                await link.aclose()
            self._lost_at, self._trouble = clock(), str(link.error)
            self._logger.warning("connection lost", link=self._purpose, error=self._trouble)
            # where every link ends at once, a broker in trouble is not to be stormed
            if clock() - since > STEADY:
                backoff.reset()
            await asyncio.sleep(backoff())

    async def _reach(self, backoff: Backoff) -> Link:
        """Try one host after the other, and wait after each round, until one answers."""
        clock, patience = asyncio.get_running_loop().time, FIRST_PATIENCE
        while True:
            refused: LinkRefused | None = None
            for _ in self._addresses:
                address = self._addresses[self._tries % len(self._addresses)]
                self._tries += 1
                try:
                    link = await Link.connect(address, timeout=patience)
                except LinkRefused as error:
                    refused = error
                    if self.let_in:  # else whoever waits is told
                        self._not_reached(error)
                except LinkLost as error:
                    self._not_reached(error)
                else:
                    if self._lost_at is not None:
                        after = round(clock() - self._lost_at, 1)
                        self._logger.info("broker reachable", link=self._purpose, after=after)
                    return link
            if refused is not None and not self.let_in:
                # who was let in before waits: what decides on logins may be in trouble, too
                self._refused = AccessRefused(str(refused))
                self._tell()
            patience = min(patience * 2, PATIENCE)
            await asyncio.sleep(backoff())

    def _not_reached(self, error: Exception) -> None:
        self._trouble = str(error)
        if self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            self._logger.warning("broker unreachable", link=self._purpose, error=self._trouble)
        elif isinstance(error, LinkRefused) and self._trouble not in self._told:
            # that it was lost is told; why it stays so is for somebody to mend
            self._logger.warning("broker refuses", link=self._purpose, error=self._trouble)
        self._told.add(self._trouble)

    async def link(self) -> Link:
        """Return the link, waiting for it without a bound. Raises AccessRefused where nobody was ever let in."""
        while self._link is None or self._link.error is not None:
            if self._refused is not None:
                raise self._refused
            self._changed.clear()
            await self._changed.wait()
        return self._link

    def _tell(self) -> None:
        self._changed.set()
