"""What the record says of subscriptions that are moved to other arguments, and what a worker makes of it.

While one is being moved, a worker leaves its queue and does not declare it. A worker of the version before, whose
arguments are not those that it was moved to, works on what is there, and never turns it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pamqp import commands

from ...errors import AccessRefused, ConfigurationError, TidegateError
from ...logs import logger
from .. import Subscription
from . import wire
from .address import Address
from .channel import Channel, ChannelClosed, Received
from .patience import patient
from .record import MIGRATED, MIGRATING, PRUNED, QUEUE, Fold, Item, Record
from .stream import Streams
from .supervisor import Backoff, Supervisor
from .topology import Names, queue


READ_WITHIN: Final = 5.0
ASK_AFTER: Final = 5.0
"""Seconds without news of the record after which its channel is asked whether it still lives."""
ANSWER_WITHIN: Final = 10.0
PREFETCH: Final = 100
TO: Final = "to"
BEFORE: Final = "before"
SINGLE: Final = "x-single-active-consumer"


@dataclass(frozen=True, slots=True)
class Move:
    """What the last mark says of a queue: where to it is moved, or was, and what is known of its arguments before."""

    moving: bool
    to: Mapping[str, Any]
    before: Sequence[Mapping[str, Any]]
    offset: int


def move_of(fold: Fold, name: str) -> Move | None:
    """Return the last move of a queue; None where it was never moved, or pruned since."""
    for mark in reversed(fold.marks):
        if Item(QUEUE, name) not in mark.items:
            continue
        if mark.kind == PRUNED:
            return None
        if mark.kind in (MIGRATING, MIGRATED):
            to, known = mark.details.get(TO), mark.details.get(BEFORE)
            if isinstance(to, dict) and isinstance(known, list):
                known = [each for each in known if isinstance(each, dict)]
                return Move(mark.kind == MIGRATING, to, known, mark.offset)
    return None


def is_moving(fold: Fold, name: str) -> bool:
    """Tell whether a queue's migration was begun and not ended: nobody else declares or removes it."""
    move = move_of(fold, name)
    return move is not None and move.moving


def aside(name: str) -> tuple[str, str]:
    """Return the queues that stand aside while one is moved: for what was in it, and for what arrives meanwhile."""
    return f"{name}.moving", f"{name}.arriving"


def before(fold: Fold, name: str, arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the arguments other than these that any version ever declared a queue with, the newest last."""
    entries = [entry for of_service in fold.declared.values() for entry in of_service.values()]
    found: list[Mapping[str, Any]] = []
    for entry in sorted(entries, key=lambda entry: entry.offset):
        for each in entry.declaration.queues:
            if each.name == name and each.arguments != arguments and each.arguments not in found:
                found.append(each.arguments)
    return found


class Moves:
    """The record as a worker follows it: read before anything is declared, and again whenever it grows."""

    def __init__(self, addresses: Sequence[Address], names: Names, timeout: float, supervisor: Supervisor) -> None:
        self._names = names
        self._streams = Streams(addresses, timeout)
        self._record = Record(self._streams, names)
        self._supervisor = supervisor
        self._changed = asyncio.Event()
        self._told: set[str] = set()
        self._reading = asyncio.Lock()
        self._followed = False

    async def read(self) -> bool:
        """Read what is new in the record, and tell whether that was possible; if not, what was known stays known."""
        async with self._reading:
            seen = self._record.fold.next
            try:
                async with asyncio.timeout(READ_WITHIN):
                    await self._record.read()
            except AccessRefused:
                pass  # whoever may not read it is not told
            except (TidegateError, TimeoutError) as error:
                logger().debug("the record of the topology cannot be read now", error=str(error))
                return False
            finally:
                await self._streams.aclose()
            if self._record.fold.next != seen:
                self._changed.set()
                self._changed = asyncio.Event()
            return True

    async def keep(self) -> None:
        """Read on whenever the record grows; ends by being cancelled, or where the user never might read it."""
        backoff = Backoff(first=0.5, limit=30)
        while True:
            try:
                await self._follow(backoff)
            except ChannelClosed as error:
                if error.code == 403 and not self._followed:
                    return
            except (ConnectionError, AccessRefused):
                pass  # the supervisor says so once, or else whoever consumes is told
            except TimeoutError:
                logger().debug("the record of the topology is not followed", error=f"no answer in {ANSWER_WITHIN:g} s")
            await asyncio.sleep(backoff())

    async def _follow(self, backoff: Backoff) -> None:
        link, news = await self._supervisor.link(), asyncio.Event()
        async with patient(ANSWER_WITHIN):
            channel = await link.channel()

        def arrived(received: Received) -> None:
            channel.settle(wire.delivered(received.method)[0])
            news.set()

        channel.on_delivery, channel.on_end = arrived, news.set
        channel.on_cancelled = channel.leave
        argument: Any = {"x-stream-offset": "next"}
        try:
            async with patient(ANSWER_WITHIN):
                await channel.rpc(commands.Basic.Qos(prefetch_count=PREFETCH))
                await channel.rpc(commands.Basic.Consume(queue=self._names.record, arguments=argument))
            self._followed = True
            while channel.error is None:
                # once at first: what was appended before this was consumed is read too
                news.clear()
                if await self.read():
                    backoff.reset()
                    await self._hear(channel, news)
                else:
                    await asyncio.sleep(backoff())
            raise channel.error
        finally:
            channel.leave()

    async def _hear(self, channel: Channel, news: asyncio.Event) -> None:
        """Wait for news. Raises TimeoutError where the channel died at the broker without a word."""
        while not news.is_set():
            try:
                async with asyncio.timeout(ASK_AFTER):
                    await news.wait()
            except TimeoutError:
                async with patient(ANSWER_WITHIN):
                    await channel.rpc(commands.Basic.Qos(prefetch_count=PREFETCH))

    def of(self, subscription: Subscription) -> Move | None:
        """Return what the record says of a subscription."""
        return move_of(self._record.fold, self._names.queue(subscription))

    def moving(self, subscription: Subscription) -> bool:
        """Tell whether it is being moved: its queue is not to be declared, nor consumed."""
        return is_moving(self._record.fold, self._names.queue(subscription))

    def arguments(self, subscription: Subscription) -> Mapping[str, Any] | None:
        """Return the arguments that its queue has instead of those that this version would declare, if that is so."""
        move, own = self.of(subscription), queue(self._names, subscription).arguments
        return move.to if move is not None and not move.moving and move.to != own and own in move.before else None

    def fault(self, subscription: Subscription) -> ConfigurationError | None:
        """Return why this version cannot work on what it was moved to; say once that it does, where it can."""
        if (moved := self.arguments(subscription)) is None:
            return None
        name = subscription.name
        if subscription.ordered and not moved.get(SINGLE):
            return ConfigurationError(
                f"{name}: its queue was moved to other arguments, for a version whose handler has no ordered_by=, and "
                "this worker's has: it cannot keep the order there. Stop this worker if it is an old one"
            )
        if name not in self._told:
            self._told.add(name)
            told = "this worker is of a version before that; it works on what is there"
            logger().warning("queue was moved to other arguments", queue=self._names.queue(subscription), told=told)
        return None

    async def over(self, subscription: Subscription) -> None:
        """Wait until it is not being moved."""
        while self.moving(subscription):
            await self._changed.wait()

    async def each(self, subscription: Subscription) -> AsyncIterator[bool]:
        """Yield whether it is being moved, now and whenever there is another mark of it."""
        told: int | None = None
        while True:
            changed, move = self._changed, self.of(subscription)
            if (offset := move.offset if move is not None else -1) != told:
                told = offset
                yield move is not None and move.moving
            else:
                await changed.wait()
