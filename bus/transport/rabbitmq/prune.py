"""Removing what is left over, so that it can be cut off at any moment and run again.

What is to go is marked first, so that an old version that connects again leaves it out, then removed, then marked as
gone. Quorum queues know no deletion `if-empty` or `if-unused`. So an empty queue is unbound, then consumed here while
it is deleted: what is sent straight to it in that moment is in our hands, and is put into a queue of the same name. A
prune that is killed before it has done so takes such a message with it; nothing else is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pamqp import commands

from ...topology import SHARED, Part, Pruned
from . import delay
from .alone import ask
from .channel import Channel, ChannelClosed, Parcel, Received
from .link import Link
from .record import BINDING, EXCHANGE, QUEUE, Fold, Item
from .stream import Streams
from .survey import Seen, look, open_letters
from .topology import ROUTED_WITHIN, Names, Queue, letter_bindings


AT_ONCE: Final = 8
"""Queues that are removed side by side."""
HELD: Final = 1_000
"""Messages that may come in while a queue is deleted."""
DELETED_WITHIN: Final = 60.0
CAME_IN: Final = "a message came in meanwhile"
CONSUMED: Final = "somebody consumes it"
STAYING: Final = "its service is not gone as a whole"


def items(names: Names, part: Part) -> list[Item]:
    """Return what the record calls a part, and what goes with it."""
    match part.kind:
        case "binding":
            return [Item(BINDING, part.name, part.exchange, part.key)]
        case "queue" | "step":
            return [Item(QUEUE, part.name), *(Item(BINDING, part.name, *binding) for binding in part.bindings)]
        case "exchange":
            return [Item(EXCHANGE, part.name)]
        case "letters":
            return [Item(EXCHANGE, names.dead(part.service))]
    return []


@dataclass(frozen=True, slots=True)
class Removal:
    """Removes parts over one link; `messages` and `consumers` tell what does not matter."""

    link: Link
    streams: Streams
    names: Names
    fold: Fold
    messages: bool
    consumers: bool

    async def all(self, chosen: Sequence[Part]) -> list[Pruned]:
        """Remove the parts: bindings, then queues, then what is of use only as long as its service has any."""
        order: tuple[tuple[str, Callable[[Part], Awaitable[Pruned]]], ...] = (
            ("binding", self._unbind),
            ("queue", self._queue),
            ("step", self._queue),
            ("suspects", self._stream),
            ("exchange", self._exchange),
            ("letters", self._letters),
        )
        done: list[Pruned] = []
        for kind, remove in order:
            staying = {each.part.service for each in done if each.kept} if kind in SHARED else ()
            parts = [part for part in chosen if part.kind == kind]
            done += [Pruned(part=part, kept=STAYING) for part in parts if part.service in staying]
            done += await _each([part for part in parts if part.service not in staying], remove)
        return done

    async def _if_there(self, command: Any, within: float = 10.0) -> str:
        """Do something about what may be gone already; return why it cannot be done."""
        channel = await self.link.channel()
        try:
            await ask(channel, command, within)
        except ChannelClosed as error:
            return "" if error.code == 404 else error.text
        channel.leave()
        return ""

    async def _unbind(self, part: Part) -> Pruned:
        return Pruned(part=part, kept=await self._if_there(_unbinding(part.name, part.exchange, part.key)))

    async def _queue(self, part: Part) -> Pruned:
        (seen,) = await look(self.link, [part])
        if kept := self._must_stay(part, seen):
            return Pruned(part=part, kept=kept)
        if seen.there is False:
            return Pruned(part=part)
        channel = await self.link.channel()
        try:
            if self.messages:
                gone = await ask(channel, commands.Queue.Delete(queue=part.name), DELETED_WITHIN)
                return Pruned(part=part, messages=gone.message_count)
            return await self._empty_queue(channel, part)
        except ChannelClosed as error:
            return Pruned(part=part, kept="" if error.code == 404 else error.text)
        finally:
            channel.leave()

    def _must_stay(self, part: Part, seen: Seen, ours: int = 0) -> str:
        if seen.consumers > ours and not self.consumers:
            return CONSUMED
        if seen.messages and not self.messages:
            return f"it has {seen.messages} messages" if not ours else CAME_IN
        return ""

    async def _empty_queue(self, channel: Channel, part: Part) -> Pruned:
        came: list[Received] = []
        channel.on_delivery = came.append
        for exchange, key in self._ways(part):
            await self._if_there(_unbinding(part.name, exchange, key))
        await ask(channel, commands.Basic.Qos(prefetch_count=HELD))
        await ask(channel, commands.Basic.Consume(queue=part.name))
        await asyncio.sleep(ROUTED_WITHIN)
        (seen,) = await look(self.link, [part])
        kept = self._must_stay(part, seen, ours=1) or (CAME_IN if came else "")
        if kept:
            # what is held goes back with the channel, and the queue is as it was
            for exchange, key in self._ways(part):
                await self._if_there(_binding(part.name, exchange, key))
            return Pruned(part=part, kept=kept)
        await ask(channel, commands.Queue.Delete(queue=part.name), DELETED_WITHIN)
        if came:
            await self._restore(channel, part, came)
            return Pruned(part=part, kept=CAME_IN)
        return Pruned(part=part)

    def _ways(self, part: Part) -> list[tuple[str, str]]:
        back = [] if part.kind == "step" else [(self.names.of(delay.RETURN), part.name)]
        return [*part.bindings, *back]

    async def _restore(self, channel: Channel, part: Part, came: Sequence[Received]) -> None:
        declared = _declared(self.fold, part)
        command = commands.Queue.Declare(queue=part.name, durable=True, arguments=dict(declared.arguments))
        await ask(channel, command)
        for exchange, key in self._ways(part):
            await self._if_there(_binding(part.name, exchange, key))
        await self.streams.store(
            [
                Parcel(
                    str(number), "", part.name, int.from_bytes(each.header[12:14], "big"), each.header[14:], each.body
                )
                for number, each in enumerate(came)
            ]
        )

    async def _exchange(self, part: Part) -> Pruned:
        kept = await self._if_there(commands.Exchange.Delete(exchange=part.name, if_unused=True))
        return Pruned(part=part, kept=kept)

    async def _stream(self, part: Part) -> Pruned:
        return Pruned(part=part, kept=await self._if_there(commands.Queue.Delete(queue=part.name), DELETED_WITHIN))

    async def _letters(self, part: Part) -> Pruned:
        """Remove the stream, and every exchange by which letters came to it or by which a generation was announced.

        It is looked at once more, when all is there that was on its way: an old replica may give up on something.
        """
        ways = letter_bindings(self.names, part.service, part.name)
        for wait in (ROUTED_WITHIN, 0.0):
            # and again: who cannot store a letter meanwhile has declared its way once more
            for exchange, key in ways:
                await self._if_there(_unbinding(part.name, exchange, key))
            await asyncio.sleep(wait)
        if count := await open_letters(self.streams, self.names, part.service):
            await self._if_there(_binding(part.name, *ways[0]))
            return Pruned(part=part, kept=f"it has {count} open dead letters")
        done = await self._stream(part)
        generation = int(part.name.removeprefix(self.names.dead(part.service)).removeprefix(".") or 0)
        while not done.kept and generation >= 0:
            exchange = self.names.letters(part.service, generation)
            done = Pruned(part=part, kept=await self._if_there(commands.Exchange.Delete(exchange=exchange)))
            generation -= 1
        return done


async def _each(parts: Sequence[Part], remove: Callable[[Part], Awaitable[Pruned]]) -> list[Pruned]:
    done: dict[Part, Pruned] = {}
    todo = iter(parts)

    failed: list[Exception] = []

    async def some() -> None:
        for part in todo:
            try:
                done[part] = await remove(part)
            except Exception as error:
                # the others end what they have begun: they may hold what came into a queue that is gone
                failed.append(error)
            if failed:
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(AT_ONCE, len(parts))):
            tasks.create_task(some(), name="prune")
    if failed:
        raise failed[0]
    return [done[part] for part in parts]


def _declared(fold: Fold, part: Part) -> Queue:
    """Return the queue as it was declared last."""
    entries = [entry for of_service in fold.declared.values() for entry in of_service.values()]
    found: Mapping[str, Queue] = {
        queue.name: queue
        for entry in sorted(entries, key=lambda entry: entry.offset)
        for queue in (*entry.declaration.queues, *entry.declaration.steps)
    }
    return found[part.name]


def _unbinding(queue: str, exchange: str, key: str) -> commands.Queue.Unbind:
    return commands.Queue.Unbind(queue=queue, exchange=exchange, routing_key=key)


def _binding(queue: str, exchange: str, key: str) -> commands.Queue.Bind:
    return commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=key)
