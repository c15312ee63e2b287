"""Runs: those of one handler that are under way, and the outcomes that could not be settled.

So a message that comes again, after its connection was lost, finds its earlier run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from math import inf
from typing import Final, TypeAlias

from .outcome import Outcome
from .transport import Delivery


Run: TypeAlias = tuple[str, str, int, str | None]
"""A message's source and id, which only together tell it from every other, the attempt, and what it was routed by.

A replay is sent to its queue alone: it is no second coming of what was given up, though all else is the same.
"""


def run_of(delivery: Delivery) -> Run | None:
    """Return what tells the run of a delivery from every other; None where its message came without an id."""
    message = delivery.message
    return None if message.id_made_up else (message.source, message.id, delivery.attempt, delivery.routed_by)


class Runs:
    """The runs that are under way, and what those came to whose connection was lost."""

    MOST: Final = 1_000
    """Outcomes that are kept for messages that may come again; the oldest go first."""
    KEPT: Final = 180.0
    """Seconds from the next run on after which what came not again was settled elsewhere, and may be a replay."""
    LOOKED: Final = 30.0
    """Seconds after which what has come meanwhile is looked at: it is seen before its outcome would be forgotten."""

    def __init__(self) -> None:
        self.here: Callable[[], Iterable[Delivery]] = tuple
        """Tells what waits here to run, or is being settled; whoever takes the deliveries sets it."""
        self._running: dict[Run, asyncio.Event | None] = {}
        self._unsettled: dict[Run, tuple[Outcome, float]] = {}
        """And until when each is kept."""
        self._due = 0.0
        """When the next of these, or of what is held, is over."""
        self._held: dict[Run, float] = {}
        """Until when what its transport holds does not come again."""

    def under_way(self, delivery: Delivery) -> bool:
        """Tell whether the earlier run of what came again is not over yet."""
        return delivery.redelivered > 0 and run_of(delivery) in self._running

    def begin(self, key: Run | None) -> Run | None:
        """Note that a run begins, and return its key."""
        if self._unsettled and (now := asyncio.get_running_loop().time()) >= self._due:
            self._reached(now)
        if key is not None:
            self._running.setdefault(key, None)
        return key

    def end(self, key: Run | None, unsettled: Outcome | None, held: float = 0.0) -> None:
        """Note that a run is over, and keep its outcome if that is not settled: held here, for so many seconds."""
        if key is None:
            return
        self._unsettled.pop(key, None)
        if unsettled is not None:
            self._unsettled[key], self._due = (unsettled, inf), 0.0
            if len(self._unsettled) > self.MOST:
                del self._unsettled[next(iter(self._unsettled))]
        if (waited_for := self._running.pop(key, None)) is not None:
            waited_for.set()
        if held:
            self._held[key] = asyncio.get_running_loop().time() + held

    def _reached(self, now: float) -> None:
        # what runs has come since: the connection is there again, and so is what was lost with it, by and by; and what
        # came not again by its time is forgotten, for its queue had the time and the room to send it
        self._held = {key: until for key, until in self._held.items() if until > now}
        # by whatever attempt: what is tried again in place comes again as its first
        here = {(each.message.source, each.message.id) for each in self.here() if each.redelivered and not each.lost}
        self._unsettled = {
            key: (outcome, inf if key[:2] in here else until if key in self._held else min(until, now + self.KEPT))
            for key, (outcome, until) in self._unsettled.items()
            if until > now or key[:2] in here
        }
        self._due = min((now + self.LOOKED, *self._held.values(), *(until for _, until in self._unsettled.values())))

    async def over(self, delivery: Delivery) -> None:
        """Wait, with what came again, until its earlier run is over; not where it is lost by then, and came again."""
        key = run_of(delivery)
        if key is None or not self.under_way(delivery):
            return
        if (older := self._running[key]) is not None:
            self._running[key] = None
            older.set()
        while key in self._running and not delivery.lost:
            await self._changed(key)

    async def earlier(self, key: Run) -> Outcome | None:
        """Return the outcome of the earlier run of a message that came again, waiting for its end; None without one."""
        while key in self._running:
            await self._changed(key)
        return self._unsettled.get(key, (None,))[0]

    async def _changed(self, key: Run) -> None:
        event = self._running[key]
        if event is None:
            event = self._running[key] = asyncio.Event()
        await event.wait()
