"""Moving a subscription to a queue of the same name with other arguments, cut off anywhere and taken up again.

A broker never changes the arguments of a queue. So what is in it goes aside, it is deleted and declared anew, and all
comes back. Two queues stand aside meanwhile, so that the order is kept: `….moving` for what was in it, `….arriving` for
what is published meanwhile. The marks in the record tell workers to leave, and to stay away until it is over; what is
done by then is read from the broker itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pamqp import commands

from ...errors import AccessRefused, ConfigurationError
from ...topology import Migration
from .. import Subscription
from . import delay
from .alone import ask, still
from .channel import ChannelClosed
from .desk import operator
from .link import Link
from .mover import Mover, is_stream
from .moves import BEFORE, SINGLE, TO, Move, aside, before, move_of
from .record import BINDING, MIGRATED, MIGRATING, QUEUE, Item, Record
from .topology import ROUTED_WITHIN, Names, queue


ASIDE: Final = "aside"
BACK: Final = "back"
"""What the keys begin with by which copies enter: no other key of the exchange has so many words."""
DELETED_WITHIN: Final = 60.0
LEFT_WITHIN: Final = 120.0
"""Seconds that whoever consumes the queue has to leave it, without any of them leaving."""
LOOK_AGAIN: Final = 0.2
NEARLY: Final = 1_000
"""Messages that are left where arriving ones are so fast that there are always some."""
SOON: Final = 5.0
"""Seconds that it is tried to catch up with the very last of them."""
YOUNG: Final = 1.0
"""Seconds after which a new quorum queue survives the kill of its only node: nothing is moved into a younger one."""
Tell = Callable[[str, int], None]
"""Called at each step, and while messages are moved, with how many there were."""


class Moving:
    """One subscription on its way to other arguments, over one link; `turn` is had by nobody else meanwhile."""

    def __init__(self, link: Link, record: Record, names: Names, app: str, subscription: Subscription) -> None:
        self._link = link
        self._record = record
        self._names = names
        self._app = app
        self._subscription = subscription
        self._wanted = queue(names, subscription)
        self._queue = self._wanted.name
        self._moving, self._arriving = aside(self._queue)
        self._back = names.back(subscription.service)
        self._moved = 0
        self._tell: Tell = lambda what, moved: None

    @property
    def _pending(self) -> Move | None:
        """The move that was begun and not ended."""
        move = move_of(self._record.fold, self._queue)
        return move if move is not None and move.moving else None

    async def look(self) -> Migration:
        """Return what there is to do. Raises LookupError where there is nothing."""
        await self._record.read()
        pending, there = self._pending, await self._there(self._queue)
        name = self._subscription.name
        if there is None and pending is None:
            raise LookupError(f"nothing to migrate: there is no queue {self._queue!r}; `topology apply` declares it")
        why = "" if there is None else await self._differs(self._wanted.arguments)
        if pending is None and there is not None and not why:
            raise LookupError(f"nothing to migrate: {name} has the arguments that the code declares")
        if there is not None and await is_stream(self._link, self._queue):
            raise ConfigurationError(
                f"{self._queue} is a stream, which forgets nothing that is taken from it, so it cannot be moved: "
                "read what is in it, delete it, and run `topology apply`"
            )
        known = before(self._record.fold, self._queue, self._wanted.arguments)
        standing = [await self._there(each) for each in (self._moving, self._arriving)]
        return Migration(
            subscription=name,
            queue=self._queue,
            why=why,
            before=dict(known[-1]) if known else {},
            after=dict(self._wanted.arguments),
            messages=sum(each.message_count or 0 for each in (there, *standing) if each is not None),
            consumers=(there.consumer_count or 0) if there is not None else 0,
            resumed=pending is not None,
        )

    async def run(self, tell: Tell) -> int:
        """Move it, and return how many messages were moved in this run. Raises LookupError, BusUnavailable."""
        self._tell = tell
        await self.look()
        wanted: Mapping[str, Any] = self._wanted.arguments
        if (pending := self._pending) is not None and pending.to != wanted:
            # what another version began is ended first: its messages stand aside in their order
            await self._to(pending.to)
            if not await self._differs(wanted):
                return self._moved
        await self._to(wanted)
        return self._moved

    async def _to(self, arguments: Mapping[str, Any]) -> None:
        item = (Item(QUEUE, self._queue),)
        known = [dict(each) for each in before(self._record.fold, self._queue, arguments)]
        details = {TO: dict(arguments), BEFORE: known, "subscription": self._subscription.name}
        if self._pending is None:
            await self._record.mark(MIGRATING, self._app, operator(), item, details)
        self._tell("marked as moving", 0)
        await self._exchanges()
        bindings = await self._bindings()
        if await self._there(self._queue) is None or await self._differs(arguments):
            await self._set_aside(arguments, bindings)
        await self._bring_back(bindings)
        still(self._link)
        await self._record.mark(MIGRATED, self._app, operator(), item, details)
        self._tell("marked as moved", 0)

    # the steps

    async def _set_aside(self, arguments: Mapping[str, Any], bindings: Sequence[tuple[str, str]]) -> None:
        """Empty and delete the old queue, and declare the new one; what is published meanwhile arrives aside."""
        plain = {name: value for name, value in self._wanted.arguments.items() if name != SINGLE}
        for each in (self._moving, self._arriving):
            await self._declare(each, plain)
        await self._bind(self._moving, [(self._back, self._key(ASIDE))])
        await asyncio.sleep(YOUNG)
        self._tell("declared what stands aside", 0)
        while True:
            if await self._there(self._queue) is not None:
                await self._switch(self._queue, self._arriving, bindings)
                self._tell("bound what stands aside", 0)
                await self._emptied(self._queue, ASIDE, ROUTED_WITHIN)
                self._tell("deleted the old queue", 0)
            else:
                await self._bind(self._arriving, bindings)
            if await self._declared(arguments):
                self._tell("declared the new queue", 0)
                await asyncio.sleep(YOUNG)
                return
            # somebody who does not know of the move was faster, with arguments of its own

    async def _bring_back(self, bindings: Sequence[tuple[str, str]]) -> None:
        """Fill the new queue with what stands aside, in its order, and have it bound again."""
        back = [(self._back, self._key(BACK))]
        await self._bind(self._queue, back)
        if await self._there(self._moving) is not None:
            await self._emptied(self._moving, BACK)
            self._tell("brought back what was moved", 0)
        if await self._there(self._arriving) is not None:
            await self._nearly_emptied()
            self._tell("brought back what arrived", 0)
            await self._switch(self._arriving, self._queue, bindings)
            self._tell("bound the new queue", 0)
            await self._emptied(self._arriving, BACK, ROUTED_WITHIN)
        else:
            await self._bind(self._queue, bindings)
        await self._unbind(self._queue, back)
        self._tell("deleted what stood aside", 0)

    async def _emptied(self, source: str, key: str, wait: float = 0.0) -> None:
        """Move everything out of a queue, wait until nobody else holds anything of it, and delete it, after a wait.

        A quorum queue counts a consumer that was cancelled until what it holds is settled; so with no messages and no
        consumers there is nothing left. Between that answer and the deletion it is consumed here, and what came in
        then is moved too.
        """
        mover = await self._mover(source, key)
        consumers, since, clock = 0, 0.0, asyncio.get_running_loop().time
        not_before = clock() + wait
        while True:
            left = await mover.drain()
            if left == (0, 0) and clock() >= not_before:
                await mover.delete(DELETED_WITHIN)
                return
            if left[1] != consumers:
                consumers, since = left[1], clock()
            if consumers:
                self._tell(f"waits until {consumers} consumers have left {source}", 0)
                if clock() - since > LEFT_WITHIN:
                    raise LookupError(
                        f"{consumers} consumers still hold messages of {source}, or do not leave it: a handler that "
                        "runs for long, or a worker that may not read the record. Stop them, and run this again"
                    )
            await asyncio.sleep(LOOK_AGAIN)

    async def _nearly_emptied(self) -> None:
        """Catch up with what arrives, so that as little as possible comes behind what arrives after the switch."""
        mover = await self._mover(self._arriving, BACK)
        near, clock = None, asyncio.get_running_loop().time
        while (left := (await mover.drain())[0]) and (near is None or clock() - near < SOON):
            if near is None and left < NEARLY:
                near = clock()

    async def _mover(self, source: str, key: str) -> Mover:
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            # each is moved aside and back, or arrives aside and comes back: it is counted once
            self._moved += count if key == BACK else 0
            self._tell(f"moves what was in {source}" if count else f"stores what was in {source}", done)

        into = self._back, self._key(key)
        return await Mover.open(self._link, source, into, self._names, self._subscription, moved)

    # what they are made of

    def _key(self, first: str) -> str:
        return f"{first}.{self._subscription.name}.{MIGRATING}"

    async def _bindings(self) -> list[tuple[str, str]]:
        """Return what the queue is bound by: what the code says, what other versions said, and the delays' end."""
        fold = self._record.fold
        known = {**fold.standing(self._app), **fold.others(self._app)}
        recorded = [(i.exchange, i.key) for i in known if i.kind == BINDING and i.name == self._queue]
        bindings = list(dict.fromkeys((*self._wanted.bindings, *recorded)))
        ending = self._names.of(delay.RETURN)
        channel = await self._link.channel()
        try:
            await ask(channel, commands.Exchange.Declare(exchange=ending, passive=True))
        except ChannelClosed as error:
            if error.code == 404:
                return bindings
            raise
        channel.leave()
        return [*bindings, (ending, self._queue)]

    async def _exchanges(self) -> None:
        dead: Any = {"alternate-exchange": self._names.dead(self._subscription.service)}
        channel = await self._link.channel()
        for name, kind, arguments in (
            (self._names.dead(self._subscription.service), "fanout", None),
            (self._names.events, "topic", None),
            (self._back, "topic", dead),
        ):
            command = commands.Exchange.Declare(exchange=name, exchange_type=kind, durable=True, arguments=arguments)
            await self._asked(channel, command)
        channel.leave()

    async def _there(self, name: str) -> commands.Queue.DeclareOk | None:
        channel = await self._link.channel()
        try:
            found: commands.Queue.DeclareOk = await ask(channel, commands.Queue.Declare(queue=name, passive=True))
        except ChannelClosed as error:
            if error.code == 404:
                return None
            raise
        channel.leave()
        return found

    async def _differs(self, arguments: Mapping[str, Any]) -> str:
        """Return how the queue, which is there, differs from one with these arguments: nothing where it does not."""
        channel = await self._link.channel()
        try:
            await self._asked(channel, _declaration(self._queue, arguments))
        except ChannelClosed as error:
            if error.code == 406:
                return error.text
            raise
        channel.leave()
        return ""

    async def _declared(self, arguments: Mapping[str, Any]) -> bool:
        return not await self._differs(arguments)

    async def _declare(self, name: str, arguments: Mapping[str, Any]) -> None:
        channel = await self._link.channel()
        try:
            await self._asked(channel, _declaration(name, arguments))
        except ChannelClosed as error:
            if error.code == 406:
                # a migration of another version left it: it does as well
                return
            raise
        channel.leave()

    async def _asked(self, channel: Any, command: Any) -> None:
        try:
            await ask(channel, command)
        except ChannelClosed as error:
            if error.code == 403:
                raise AccessRefused(f"{error.text}; topology migrate needs the right to configure it") from error
            if error.code == 406 and isinstance(command, commands.Exchange.Declare):
                raise ConfigurationError(
                    f"{error.text}: an exchange of the same name has other arguments; delete it, and have it declared "
                    "by `topology apply`"
                ) from error
            raise

    async def _bind(self, name: str, bindings: Sequence[tuple[str, str]]) -> None:
        await self._at_once([_binding(name, *binding) for binding in bindings])

    async def _unbind(self, name: str, bindings: Sequence[tuple[str, str]]) -> None:
        await self._at_once([_unbinding(name, *binding) for binding in bindings])

    async def _switch(self, old: str, new: str, bindings: Sequence[tuple[str, str]]) -> None:
        """Bind the new before the old is unbound: what is published between the two comes to both."""
        pairs = [(_binding(new, *binding), _unbinding(old, *binding)) for binding in bindings]
        await self._at_once([command for pair in pairs for command in pair])

    async def _at_once(self, asked: Sequence[Any]) -> None:
        """Send all without waiting for each: what lies between two of them is as short as can be."""
        channel = await self._link.channel()
        async with asyncio.timeout(30):
            await asyncio.gather(*(channel.rpc(command) for command in asked))
        channel.leave()


def _declaration(name: str, arguments: Mapping[str, Any]) -> commands.Queue.Declare:
    return commands.Queue.Declare(queue=name, durable=True, arguments=dict(arguments))


def _binding(name: str, exchange: str, key: str) -> commands.Queue.Bind:
    return commands.Queue.Bind(queue=name, exchange=exchange, routing_key=key)


def _unbinding(name: str, exchange: str, key: str) -> commands.Queue.Unbind:
    return commands.Queue.Unbind(queue=name, exchange=exchange, routing_key=key)
