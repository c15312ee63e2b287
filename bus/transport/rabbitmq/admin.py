"""RabbitMQTopology: the seam's verbs about what is declared, over links that are opened when they are needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final

from aio_pika.exceptions import AMQPError
from aio_pika.exceptions import ChannelClosed as DeclareRefused

from ...errors import AccessRefused, BusUnavailable, ConfigurationError, TidegateError
from ...logs import logger
from ...topology import Migration, Part, Pruned, Survey, going
from .. import Subscription
from . import delay, topology
from .address import Address
from .administration import administration
from .alone import alone, still
from .channel import Channel
from .desk import operator
from .migration import Moving
from .moves import Moves, is_moving
from .plan import declarations
from .prune import Removal, items
from .record import BINDING, PRUNED, PRUNING, QUEUE, Declaration, Declared, Item, Record
from .stream import Streams
from .supervisor import Backoff
from .survey import left_over, looked, open_letters, survey
from .topology import SUSPECTS, Names, Queue, queue, steps


NOTED_WITHIN: Final = 60.0
"""Seconds that a worker tries to note what it declared, while it consumes."""
READ_WITHIN: Final = 5.0
"""Seconds that a worker which declares a queue again waits to hear what was pruned meanwhile."""

TURN_WITHIN: Final = 2.0
"""Seconds that a migration waits for its turn."""
APPLIED_WITHIN: Final = 10.0
"""Seconds that an apply waits for its turn: several deployments may apply at once."""


class RabbitMQTopology:
    """What is declared at one broker."""

    def __init__(self, addresses: Sequence[Address], names: Names, timeout: float, moves: Moves) -> None:
        self._moves = moves
        self._addresses = addresses
        self._names = names
        self._timeout = timeout
        self._noted_as: dict[str, Declared] = {}
        """By service: the entry that says what this process declared."""

    @asynccontextmanager
    async def _record(self) -> AsyncIterator[tuple[Streams, Record]]:
        streams = Streams(self._addresses, self._timeout)
        try:
            async with streams.told():
                yield streams, Record(streams, self._names)
        finally:
            await streams.aclose()

    def _turn(self) -> tuple[str, str]:
        return f"{self._names.record}.changing", "somebody else changes the topology just now: run it again"

    # a worker's notes

    async def note(self, app: str, worker: str, subscriptions: Sequence[Subscription]) -> Sequence[Part]:
        """Note what a worker declared; return the queues of its services that no handler has."""
        wanted = declarations(self._names, app, subscriptions)
        backoff = Backoff(first=0.5, limit=10)
        try:
            async with asyncio.timeout(NOTED_WITHIN):
                while True:
                    try:
                        return await self._noted(app, worker, subscriptions, wanted)
                    except (BusUnavailable, ConnectionError, LookupError) as error:
                        logger().debug("the topology cannot be noted now", error=str(error))
                    await asyncio.sleep(backoff())
        except Exception as error:  # whatever it is, consuming goes on
            told = str(error) or f"it did not take it within {NOTED_WITHIN:g} s: {error!r}"
            logger().warning("what is declared is not noted", record=self._names.record, error=told)
            return ()

    async def _noted(
        self, app: str, worker: str, subscriptions: Sequence[Subscription], wanted: Sequence[Declaration]
    ) -> list[Part]:
        async with self._record() as (streams, record):
            await record.read()
            for declared in wanted:
                if not record.fold.stands(declared):
                    await self._append(streams, record, worker, declared, subscriptions)
                if (last := record.fold.last(app, declared.service)) is not None:
                    self._noted_as[declared.service] = last
            ours = {declared.service: declared for declared in wanted}
            left = [
                part
                for part in left_over(self._names, record.fold, app, ours)
                if part.kind == "queue" and part.service in ours and part.held in ("", "moving")
            ]
            return [part for part in await looked(await streams.link(), left) if part.there and not part.consumers]

    async def _append(
        self,
        streams: Streams,
        record: Record,
        worker: str,
        declared: Declaration,
        subscriptions: Sequence[Subscription],
    ) -> None:
        """Append a declaration; where that brings back what was pruned, or is just being pruned, declare it again.

        That waits for the turn, for as long as `note` does.
        """
        await record.declared(declared, worker)
        backoff = Backoff(first=0.2)
        while any(record.fold.pruned_at(item, begun=True) >= 0 for item in declared.items):
            try:
                async with alone(streams, *self._turn()), administration(self._addresses) as connection:
                    own = [each for each in subscriptions if each.service == declared.service]
                    await topology.declare(connection, self._names, own, await self._left_alone(record, own))
                    # whoever pruned it has noted that by now, and this stands after it
                    await record.declared(declared, worker)
                    return
            except LookupError:
                await asyncio.sleep(backoff())

    async def _left_alone(self, record: Record, subscriptions: Sequence[Subscription]) -> list[str]:
        """Return the queues whose migration is not over, for whoever has the turn: it may have been cut off."""
        await record.read()
        queues = [self._names.queue(subscription) for subscription in subscriptions]
        return [queue for queue in queues if is_moving(record.fold, queue)]

    async def declare_again(
        self, subscription: Subscription, declare: Callable[[Container[object]], Awaitable[None]]
    ) -> ConfigurationError | None:
        """Declare what was deleted, but not what was pruned since this process noted what it declares.

        Retry steps are declared all the same: this version needs them. Returns an error where the queue was pruned.
        """
        mine = frozenset(_items_of(queue(self._names, subscription)))
        gone = mine & await self._pruned(subscription)
        await declare({_plain(item) for item in gone})
        if fresh := (mine & await self._pruned(subscription)) - gone:
            # the prune went by while this was declared
            await self._undo(subscription, fresh)
        if Item(QUEUE, self._names.queue(subscription)) not in gone | fresh:
            return None
        return ConfigurationError(
            f"{subscription.name}: its queue was pruned while this worker ran, as no handler of the code that it was "
            "pruned by has it. Stop this worker if it is an old one; a worker that starts declares its queues again"
        )

    async def _pruned(self, subscription: Subscription) -> frozenset[Item]:
        """Return what was pruned since this process noted what it declares; nothing where that cannot be told."""
        if (noted := self._noted_as.get(subscription.service)) is None:
            return frozenset()
        try:
            async with asyncio.timeout(READ_WITHIN), self._record() as (_, record):
                gone = (await record.read()).pruned_since(noted.offset)
                if kept := gone & {i for step in steps(self._names, subscription) for i in _items_of(step)}:
                    await record.declared(_without(noted.declaration, gone - kept), noted.worker)
                return gone
        except (TidegateError, TimeoutError) as error:
            logger().warning("what was pruned is not known", record=self._names.record, error=str(error))
            return frozenset()

    async def _undo(self, subscription: Subscription, fresh: frozenset[Item]) -> None:
        name, service = self._names.queue(subscription), subscription.service
        if Item(QUEUE, name) in fresh:
            bound = tuple((item.exchange, item.key) for item in fresh if item.kind == BINDING)
            parts = [Part(kind="queue", name=name, service=service, bindings=bound)]
        else:
            parts = [
                Part(kind="binding", name=name, service=service, exchange=item.exchange, key=item.key) for item in fresh
            ]
        async with self._record() as (streams, record):
            fold = await record.read()
            await Removal(await streams.link(), streams, self._names, fold, False, False).all(parts)

    # an operator's verbs

    async def survey(self, app: str, subscriptions: Sequence[Subscription]) -> Survey:
        """Return what the code declares, what other versions declared, and what is there of both."""
        async with self._record() as (streams, record):
            return await self._survey(streams, record, app, subscriptions)

    async def _survey(
        self, streams: Streams, record: Record, app: str, subscriptions: Sequence[Subscription]
    ) -> Survey:
        trouble, refused = "", False
        try:
            if not (await record.read()).declared:
                trouble = f"{self._names.record} is empty: no worker noted what it declared, so only the code is known"
        except AccessRefused as error:
            trouble, refused = f"what other versions declared is not known: {error}", True
        wanted = declarations(self._names, app, subscriptions)
        found = await survey(await streams.link(), self._names, record.fold, app, wanted, str(self._addresses[0]))
        left = [await self._with_letters(streams, part) if part.kind == "letters" else part for part in found.left]
        return replace(found, left=tuple(left), trouble=trouble, refused=refused)

    async def _with_letters(self, streams: Streams, part: Part) -> Part:
        count = await open_letters(streams, self._names, part.service)
        return replace(part, messages=count, held="letters" if count else "")

    async def apply(self, app: str, subscriptions: Sequence[Subscription]) -> Sequence[TidegateError]:
        """Declare everything but what is being migrated, and note it; raises LookupError where it has no turn."""
        async with self._record() as (streams, record), AsyncExitStack() as stack:
            turn = await self._turn_soon(stack, streams, APPLIED_WITHIN)
            moving = await self._left_alone(record, subscriptions)
            faults = await self._apply(subscriptions, moving)
            still(turn.link)
            for declared in declarations(self._names, app, subscriptions):
                if not record.fold.stands(declared):
                    await record.declared(declared, operator())
        return [*faults, *(_moving(each.name) for each in subscriptions if self._names.queue(each) in moving)]

    async def _apply(self, subscriptions: Sequence[Subscription], moving: Container[str]) -> list[TidegateError]:
        faults: list[TidegateError] = []
        try:
            async with administration(self._addresses) as connection:
                faults += (await topology.declare(connection, self._names, subscriptions, moving, must=True)).values()
                for service in dict.fromkeys(each.service for each in subscriptions):
                    entrance = (self._names.retry(service), topology.MARKS)
                    try:
                        await topology.declare_stream_on(connection, self._names.suspects(service), SUSPECTS, entrance)
                    except (AccessRefused, ConfigurationError) as error:
                        faults.append(error)
            faults += await self._cascade()
        except (ConnectionError, AMQPError, TimeoutError) as error:
            raise BusUnavailable(f"the topology cannot be declared now: {error or repr(error)}", {}) from error
        return faults

    async def _cascade(self) -> list[TidegateError]:
        try:
            async with aclosing(delay.declare(self._addresses, self._names)) as levels:
                async for _ in levels:
                    pass
        except DeclareRefused as error:
            what = self._names.of("delay")
            refused = "ACCESS_REFUSED" in str(error)
            return [AccessRefused(f"{what}: {error}") if refused else topology.mismatch(what, str(error))]
        return []

    async def prune(
        self,
        app: str,
        subscriptions: Sequence[Subscription],
        chosen: Sequence[Part],
        *,
        messages: bool = False,
        consumers: bool = False,
    ) -> Sequence[Pruned]:
        """Remove what is chosen, as far as it is left over still, and note that it is gone."""
        names = self._names
        async with self._record() as (streams, record), alone(streams, *self._turn()) as turn:
            found = (await self._survey(streams, record, app, subscriptions)).left
            judged = record.fold.next
            wanted = {_key(part) for part in chosen}
            todo = going(found, lambda part: _key(part) in wanted and _may_go(part, messages, consumers))
            marked = tuple(item for part in todo for item in items(names, part))
            mark = await record.mark(PRUNING, app, operator(), marked)
            # whoever declared between the judgment and the mark is not gone; who does so after it declares again
            fresh = _declared_since(record, judged)
            todo = [part for part in todo if fresh.isdisjoint(items(names, part))]
            removal = Removal(turn.link, streams, names, record.fold, messages, consumers)
            done = await removal.all(todo)
            gone = tuple(item for each in done if not each.kept for item in items(names, each.part))
            still(turn.link)
            await record.mark(PRUNED, app, operator(), gone, {PRUNING: mark.offset})
            return done

    async def migration(self, app: str, subscription: Subscription) -> Migration:
        """Return what a migration would do."""
        async with self._record() as (streams, record):
            return await Moving(await streams.link(), record, self._names, app, subscription).look()

    async def migrate(self, app: str, subscription: Subscription, tell: Callable[[str, int], None]) -> int:
        """Move a subscription to the arguments that the code declares."""
        async with self._record() as (streams, record), AsyncExitStack() as stack:
            turn = await self._turn_soon(stack, streams)
            return await Moving(turn.link, record, self._names, app, subscription).run(tell)

    async def _turn_soon(self, stack: AsyncExitStack, streams: Streams, within: float = TURN_WITHIN) -> Channel:
        """Have the turn; a broker takes a moment to see that whoever had it was killed."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + within
        while True:
            try:
                return await stack.enter_async_context(alone(streams, *self._turn()))
            except LookupError:
                if clock() > give_up:
                    raise
            await asyncio.sleep(0.1)

    def moving(self, subscription: Subscription) -> AsyncIterator[bool]:
        """Yield whether a subscription is being migrated, as the record tells it."""
        return self._moves.each(subscription)


def _key(part: Part) -> tuple[str, ...]:
    return part.kind, part.name, part.exchange, part.key


def _may_go(part: Part, messages: bool, consumers: bool) -> bool:
    return part.held in ("", "messages" if messages else "", "consumers" if consumers else "")


def _moving(subscription: str) -> TidegateError:
    return ConfigurationError(
        f"{subscription}: its migration was begun and not ended, so its queue was left as it is: run "
        f"`python app.py topology migrate {subscription}`, which goes on with it"
    )


def _declared_since(record: Record, offset: int) -> frozenset[Item]:
    entries = [entry for of_service in record.fold.declared.values() for entry in of_service.values()]
    return frozenset[Item]().union(*(entry.declaration.items for entry in entries if entry.offset >= offset))


def _items_of(declared: Queue) -> Iterator[Item]:
    yield Item(QUEUE, declared.name)
    yield from (Item(BINDING, declared.name, exchange, key) for exchange, key in declared.bindings)


def _plain(item: Item) -> object:
    return (item.name, item.exchange, item.key) if item.kind == BINDING else item.name


def _without(declaration: Declaration, gone: frozenset[Item]) -> Declaration:
    """Return what is declared still where some of it was pruned."""
    left = [
        replace(each, bindings=tuple(b for b in each.bindings if Item(BINDING, each.name, *b) not in gone))
        for each in declaration.queues
        if Item(QUEUE, each.name) not in gone
    ]
    return replace(declaration, queues=tuple(left))
