"""Lanes: what an ordered handler holds, a lane for each key. In a lane one delivery runs at a time, in its order.

A retry happens in place: the delivery stays at the head of its lane until it is due, unsettled, and its key waits with
it. A delivery is lost when its channel is gone, and comes again then, here or elsewhere. What runs goes on, and what
comes later of its key waits for it; of what had failed, the attempt and the due time are remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from hashlib import blake2b
from typing import Final, TypeAlias

from .logs import logger
from .message import unique
from .ordering import KeyOf
from .outcome import Outcome, Release, Retry
from .transport import Delivery
from .wrapped import WrappedDelivery


RELEASED: Final = 1.0
"""Seconds after which a delivery that a middleware released is run again: given back it would lose its place."""


Progress: TypeAlias = tuple[int, datetime | None, datetime | None, float]


class Held(WrappedDelivery):
    """A delivery in a lane: to whoever runs it a delivery as any, but what it came to may be another try in place."""

    __slots__ = (
        "_again",
        "arrived",
        "attempt",
        "due",
        "first_failed_at",
        "lane",
        "settled",
        "waits_since",
    )

    def __init__(self, delivery: Delivery, lane: Lane, arrived: float) -> None:
        super().__init__(delivery)
        self.lane = lane
        self.arrived = arrived
        self.attempt = delivery.attempt
        self.first_failed_at: datetime | None = delivery.first_failed_at
        self.waits_since: datetime | None = delivery.waits_since
        self.due = 0.0
        self.settled = False
        self._again: Retry | None = None

    async def settle(self, outcome: Outcome) -> None:
        """Carry the outcome out; another try is only noted, and the broker is told nothing of it."""
        if isinstance(outcome, Retry):
            self._again = outcome
            return
        if isinstance(outcome, Release):
            return  # given back alone it would come again behind what was handed out after it
        await self._delivery.settle(outcome)
        self.settled = True

    def try_again(self, now: float) -> None:
        """Set when it is due, and the attempt that it will be."""
        again, self._again = self._again, None
        if again is None:
            # lost, it is as good as done: what it came to is settled when it comes again
            self.due = now if self.lost else now + RELEASED
        else:
            self.attempt, self.first_failed_at = again.attempt, again.failure.first_failed_at
            self.waits_since = again.waits_since
            self.due = now + again.delay.total_seconds()

    @property
    def progress(self) -> Progress:
        """How far it has come: its attempt, when it first failed, since when it waits for a deploy, when it is due."""
        return self.attempt, self.first_failed_at, self.waits_since, self.due

    def go_on_from(self, progress: Progress) -> None:
        """Go on where an earlier delivery of the same message was."""
        self.attempt, self.first_failed_at, self.waits_since, self.due = progress


class Lane:
    """The held deliveries of one key, in their order. It is taken while it is ready or runs, else it waits."""

    __slots__ = ("key", "running", "taken", "timer", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.waiting: deque[Held] = deque()
        self.running: Held | None = None
        self.taken = False
        self.timer: asyncio.TimerHandle | None = None


class Lanes:
    """The lanes of one handler. `wake` is called for each lane that becomes ready while nobody is about to take it.

    When `window` deliveries are held and every lane waits for a retry, nothing more comes: that is said once, and so is
    that it goes on.
    """

    def __init__(self, name: str, key_of: KeyOf, window: int, wake: Callable[[], None]) -> None:
        self.ready: deque[Lane] = deque()
        self.running = 0
        self._name = name
        self._key_of = key_of
        self._window = window
        self._wake = wake
        self._lanes: dict[Hashable, Lane] = {}
        self._live: OrderedDict[Held, None] = OrderedDict()
        self._known: OrderedDict[bytes, Progress] = OrderedDict()
        self._taken = 0
        self._full = False
        self._loop = asyncio.get_running_loop()
        self._logger = logger()

    @property
    def oldest(self) -> Held | None:
        """What is held for longest and can still be settled."""
        return next(iter(self._live), None)

    def held(self) -> Iterable[Held]:
        """Return what is held and can still be settled, and what was lost and nobody has let go of yet."""
        return self._live

    def put(self, delivery: Delivery) -> None:
        """Take a delivery, in the order in which they arrived, into the lane of its key."""
        if self._live and next(iter(self._live)).lost:
            self.sweep()
        lane = self._lane(self._key_of(delivery.message))
        held = Held(delivery, lane, self._loop.time())
        lane.waiting.append(held)
        self._live[held] = None
        if not lane.taken and lane.timer is None:
            self._go_on(lane)
        if len(self._live) >= self._window:
            self._tell_if_full()

    def begin(self, lane: Lane) -> Held | None:
        """Return the head of a lane that was ready, which runs from now on; None if nothing in it may run now."""
        if lane.waiting and lane.waiting[0].lost:
            self._shed(lane)
        if not lane.waiting or self._due_at(lane) > self._loop.time():
            self._leave(lane)
            return None
        lane.running = lane.waiting[0]
        self.running += 1
        return lane.running

    def end(self, held: Held) -> None:
        """Note that a run is over: its lane goes on, or waits until it is tried again."""
        lane = held.lane
        lane.running = None
        self.running -= 1
        gone = held.settled or held.lost
        if not held.settled:
            held.try_again(self._loop.time())
        if gone:
            lane.waiting.popleft()
            self._live.pop(held, None)
            if not held.settled:
                self._remember(held)
        self._leave(lane)
        if self._full and len(self._live) < self._window:
            self._full = False
            self._logger.info("handler goes on", handler=self._name, held=len(self._live))
        elif not gone:
            self._tell_if_full()

    def put_back(self, lane: Lane) -> None:
        """Let a lane that was taken from the ready ones be the next again."""
        self.ready.appendleft(lane)

    def sweep(self) -> None:
        """Let go of what is lost; what runs goes on."""
        lost = [held for held in self._live if held.lost]
        for held in lost:
            del self._live[held]
        for lane in dict.fromkeys(held.lane for held in lost):
            self._shed(lane)
            if lane.timer is not None:
                lane.timer.cancel()
                lane.timer = None
                self._go_on(lane)

    def close(self) -> None:
        """Stop the timers."""
        for held in self._live:
            if held.lane.timer is not None:
                held.lane.timer.cancel()

    def _lane(self, key: Hashable) -> Lane:
        lane = self._lanes.get(key) if key is not None else None
        if lane is None:
            lane = Lane(key)
            if key is not None:
                self._lanes[key] = lane
        return lane

    def _go_on(self, lane: Lane, *, wake: bool = True) -> None:
        """Make a lane ready, or let it wait until its head is due; an empty one is forgotten."""
        if not lane.waiting:
            if lane.key is not None:
                del self._lanes[lane.key]
            return
        if (due := self._due_at(lane)) > self._loop.time():
            lane.timer = self._loop.call_at(due, self._due, lane)
        else:
            lane.taken = True
            self._taken += 1
            self.ready.append(lane)
            if wake:
                self._wake()

    def _due_at(self, lane: Lane) -> float:
        """Return when the head may run; what came again goes on where it was, what was replayed starts anew."""
        head = lane.waiting[0]
        if self._known and (known := self._known.pop(_known_by(head), None)) is not None and head.redelivered:
            head.go_on_from(known)
        return head.due

    def _due(self, lane: Lane) -> None:
        lane.timer = None
        self._go_on(lane)

    def _leave(self, lane: Lane) -> None:
        lane.taken = False
        self._taken -= 1
        # whoever leaves a lane comes back for the next that is ready
        self._go_on(lane, wake=False)

    def _shed(self, lane: Lane) -> None:
        """Drop what is lost and does not run."""
        kept: deque[Held] = deque()
        for held in lane.waiting:
            if held is lane.running or not held.lost:
                kept.append(held)
            else:
                self._live.pop(held, None)
                self._remember(held)
        lane.waiting = kept

    def _remember(self, held: Held) -> None:
        """Keep what is known of a message that may come again; the oldest goes first."""
        if held.first_failed_at is not None:
            self._known[_known_by(held)] = held.progress
            if len(self._known) > self._window:
                self._known.popitem(last=False)

    def _tell_if_full(self) -> None:
        if self._full or self._taken or len(self._live) < self._window:
            return
        self._full = True
        oldest = next(iter(self._live))
        self._logger.warning(
            "handler pauses: all that it may hold waits for a retry",
            handler=self._name,
            held=len(self._live),
            oldest_key=None if oldest.lane.key is None else str(oldest.lane.key),
            next_try=round(max(oldest.due - self._loop.time(), 0), 1),
        )


def _known_by(held: Held) -> bytes:
    """Return what tells a message from every other; what came without an id from all that carries something else.

    Equals have one key, and stay in its order: the first of them is the one that ran.
    """
    message = held.message
    if message.id_made_up:
        kind = f"{len(message.type)} {message.type}".encode("utf-8", "surrogatepass")
        return blake2b(kind + message.body, digest_size=16).digest()
    return unique(message)
