"""The queues and exchanges at the broker: their names, in one place, and their declaration through aio-pika.

Arguments of a queue are immutable at the broker, so they are what DESIGN says from the first day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.common import FieldTable

from ...errors import AccessRefused, BusUnavailable, TidegateError, TopologyMismatch
from ...logs import logger
from .. import Subscription
from .address import Address
from .administration import administration
from .link import LinkRefused


DELIVERY_LIMIT: Final = 1_000
"""A backstop only: what kills workers is dead-lettered long before. Never -1: 3.10 discards after one return."""
CONSUMER_TIMEOUT: Final = 1_800_000
ANSWER_WITHIN: Final = 30.0
"""Seconds that one subscription, or the delay cascade, may take to be declared before its connection is given up."""
STREAM: Final[FieldTable] = {"x-queue-type": "stream"}
"""Arguments of a generation of dead letters, and of the record: kept without limit."""
ROUTED_WITHIN: Final = 1.0
"""Seconds within which a queue has what was routed to it before it was unbound: a channel that is held up between the
two, or a node that hears of the unbinding late, would publish into a queue that is deleted, and be told that it is
stored."""
MARKS: Final = "suspects"
"""The routing key of the marks: by it they go from the exchange of the retries to their stream, and no retry has it."""
REMEDY: Final = "run `python app.py topology apply` as a user who may configure"
SEGMENT: Final = 1_000_000
"""Bytes after which a stream begins a new file; only whole files grow old enough to go."""
SUSPECTS: Final[FieldTable] = {
    "x-queue-type": "stream",
    "x-max-age": "7D",
    "x-stream-max-segment-size-bytes": SEGMENT,
}
"""Arguments of the marks of suspects: kept for a week."""


Moved: TypeAlias = Mapping[str, Mapping[str, Any]]
NOT_MOVED: Final[Moved] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Names:
    """What everything is called at the broker; a namespace is put before each name."""

    namespace: str = ""

    def of(self, name: str) -> str:
        """Return the name at the broker."""
        return f"{self.namespace}.{name}" if self.namespace else name

    @property
    def events(self) -> str:
        """The topic exchange that every event is published to."""
        return self.of("events")

    def queue(self, subscription: Subscription) -> str:
        """The subscription's queue."""
        return self.of(subscription.name)

    def retry(self, service: str) -> str:
        """The topic exchange that retries enter by."""
        return self.of(f"{service}.retry")

    def step(self, service: str, delay: timedelta) -> str:
        """The queue in which retries of one delay wait."""
        return self.of(f"{service}.retry.{milliseconds(delay)}")

    def back(self, service: str) -> str:
        """The topic exchange that retries come back by."""
        return self.of(f"{service}.return")

    def dead(self, service: str) -> str:
        """The fanout exchange of a service's dead letters."""
        return self.of(f"{service}.dead")

    def letters(self, service: str, generation: int) -> str:
        """The stream of one generation of a service's dead letters; and the exchange that says that it was begun."""
        return f"{self.dead(service)}.{generation}" if generation else self.dead(service)

    def suspects(self, service: str) -> str:
        """The stream of marks of what may kill the service's workers."""
        return self.of(f"{service}.suspects")

    @property
    def record(self) -> str:
        """The stream of what was declared."""
        return self.of("tidegate.topology")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is declared: a subscription's, or a step in which retries wait. Names are those at the broker."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bindings: tuple[tuple[str, str], ...] = ()
    """Exchange and key of each."""


def letter_bindings(names: Names, service: str, stream: str) -> list[tuple[str, str]]:
    """Return how a generation of dead letters may be bound: by its name, where aio-pika was told no key, or by none."""
    return [(names.dead(service), key) for key in (stream, "")]


def milliseconds(delay: timedelta) -> int:
    """Return the delay as the broker counts it, rounded up: never early."""
    return -(-delay // timedelta(milliseconds=1))


def retry_key(subscription: str, delay: timedelta) -> str:
    """Return the routing key by which a retry finds its step, and then its handler."""
    return f"{milliseconds(delay)}.{subscription}"


def queue_arguments(names: Names, subscription: Subscription) -> dict[str, Any]:
    """Return the arguments of a subscription's queue."""
    ordered = {"x-single-active-consumer": True} if subscription.ordered else {}
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": names.dead(subscription.service),
        "x-dead-letter-routing-key": names.queue(subscription),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-consumer-timeout": CONSUMER_TIMEOUT,
        **ordered,
    }


def step_arguments(names: Names, service: str, delay: timedelta) -> dict[str, Any]:
    """Return the arguments of a queue in which retries wait."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-message-ttl": milliseconds(delay),
        "x-dead-letter-exchange": names.back(service),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def queue(names: Names, subscription: Subscription) -> Queue:
    """Return the subscription's queue."""
    back = (names.back(subscription.service), f"*.{subscription.name}")
    patterns = ((names.events, pattern) for pattern in subscription.patterns)
    return Queue(names.queue(subscription), queue_arguments(names, subscription), (back, *patterns))


def steps(names: Names, subscription: Subscription) -> list[Queue]:
    """Return the queues in which the subscription's retries wait; handlers of one service share them."""
    service, delays = subscription.service, dict.fromkeys(d for d in subscription.delays if d > timedelta())
    return [
        Queue(
            names.step(service, delay),
            step_arguments(names, service, delay),
            ((names.retry(service), f"{milliseconds(delay)}.#"),),
        )
        for delay in delays
    ]


async def declare(
    connection: AbstractConnection,
    names: Names,
    subscriptions: Sequence[Subscription],
    without: Container[object] = (),
    moved: Moved = NOT_MOVED,
    *,
    must: bool = False,
) -> dict[str, TidegateError]:
    """Declare what the subscriptions need; return what is wrong, by subscription.

    A user that may not configure is no error here, unless something is missing, or unless they `must`. `without` has
    what is left out: names of queues, and bindings as queue, exchange and key. `moved` has the arguments of queues that
    were moved to others than this version's.
    """
    faults: dict[str, TidegateError] = {}
    done: set[str] = set()
    for subscription in subscriptions:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                channel = await connection.channel()
                if subscription.service not in done:
                    await _declare_service(connection, channel, names, subscription.service)
                    done.add(subscription.service)
                await _declare_subscription(channel, names, subscription, without, moved, done)
                await channel.close()
        except ChannelPreconditionFailed as error:
            faults[subscription.name] = mismatch(subscription.name, str(error))
        except ChannelClosed as error:
            if "ACCESS_REFUSED" not in str(error):
                raise
            if (missing := await _missing(connection, names, subscription)) is not None:
                faults[subscription.name] = AccessRefused(f"{missing}, and cannot be declared: {error}; {REMEDY}")
            elif must:
                faults[subscription.name] = AccessRefused(f"{subscription.name}: {error}")
    return faults


async def _missing(connection: AbstractConnection, names: Names, subscription: Subscription) -> str | None:
    """Return what the broker says of the first thing that is not there; None, too, where it lets nobody look."""
    service = subscription.service
    try:
        async with asyncio.timeout(ANSWER_WITHIN), connection.channel() as channel:
            for exchange in (names.events, names.dead(service), names.retry(service), names.back(service)):
                await channel.get_exchange(exchange)
            for wanted in (queue(names, subscription), *steps(names, subscription)):
                await channel.get_queue(wanted.name)
    except ChannelNotFoundEntity as error:
        return str(error)
    except ChannelClosed as error:
        if "ACCESS_REFUSED" not in str(error):
            raise
    return None


def mismatch(subscription: str, told: str, *, movable: bool = True) -> TopologyMismatch:
    """Return the error for a queue or exchange that exists with other arguments."""
    if movable and (f"queue '{subscription}'" in told or f".{subscription}'" in told):
        single = "x-single-active-consumer" in told
        why = (
            "Its handler has ordered_by= and the queue was made without, or the other way round"
            if single
            else "It was declared by another version or by hand"
        )
        return TopologyMismatch(
            f"{subscription}: {told}. {why}, and a broker never changes the arguments of what exists. "
            f"`python app.py topology migrate {subscription}` moves the queue to these arguments, with its messages"
        )
    return TopologyMismatch(
        f"{subscription}: {told}. It was declared by another version or by hand, and a broker never changes the "
        "arguments of what exists. Let it run empty and delete it, or go back to the version that made it."
    )


async def _declare_service(
    connection: AbstractConnection, channel: AbstractChannel, names: Names, service: str
) -> None:
    dead = await channel.declare_exchange(names.dead(service), "fanout", durable=True)
    await _declare_letters(connection, channel, names, service, dead)
    await channel.declare_exchange(names.events, "topic", durable=True)
    await channel.declare_exchange(names.retry(service), "topic", durable=True)
    alternate: dict[str, Any] = {"alternate-exchange": names.dead(service)}
    await channel.declare_exchange(names.back(service), "topic", durable=True, arguments=alternate)


async def _declare_letters(
    connection: AbstractConnection, channel: AbstractChannel, names: Names, service: str, dead: AbstractExchange
) -> None:
    """Declare the newest generation of the dead letters, and not an older one, which a compaction has deleted."""
    generation, before = await _newest(connection, names, service, 0), None
    while generation != before:
        stream = await channel.declare_queue(names.letters(service, generation), durable=True, arguments=STREAM)
        await stream.bind(dead)
        before, generation = generation, await _newest(connection, names, service, generation)
        if generation != before:
            # a compaction went on meanwhile: its next run sweeps up what was declared here, and while it needs the
            # older generation bound, that is bound by another key too
            await stream.unbind(dead)


async def _newest(connection: AbstractConnection, names: Names, service: str, generation: int) -> int:
    """Return the newest generation that was announced: each has an exchange of its name, which is never deleted."""
    while True:
        probe = await connection.channel()
        try:
            await probe.get_exchange(names.letters(service, generation + 1))
        except ChannelNotFoundEntity:
            return generation
        await probe.close()
        generation += 1


async def _declare_subscription(
    channel: AbstractChannel,
    names: Names,
    subscription: Subscription,
    without: Container[object],
    moved: Moved,
    done: set[str],
) -> None:
    for wanted in (queue(names, subscription), *steps(names, subscription)):
        if wanted.name in without or wanted.name in done:
            continue
        declared = await channel.declare_queue(
            wanted.name, durable=True, arguments=dict(moved.get(wanted.name, wanted.arguments))
        )
        for exchange, key in wanted.bindings:
            if (wanted.name, exchange, key) not in without:
                await declared.bind(exchange, key)
        done.add(wanted.name)


async def declare_stream(
    addresses: Sequence[Address], stream: str, arguments: FieldTable, entrance: tuple[str, str] | None = None
) -> None:
    """Declare a stream, and bind it to the exchange and key of its `entrance`.

    Raises AccessRefused without the right to, and TopologyMismatch where it is another.
    """
    try:
        async with asyncio.timeout(ANSWER_WITHIN), administration(addresses) as connection:
            await declare_stream_on(connection, stream, arguments, entrance)
    except (LinkRefused, ConnectionError, AMQPError, TimeoutError) as error:
        raise BusUnavailable(f"{stream} cannot be declared now: {error!r}", {}) from error


async def declare_stream_on(
    connection: AbstractConnection, stream: str, arguments: FieldTable, entrance: tuple[str, str] | None = None
) -> None:
    """Declare a stream on a connection; raises as `declare_stream`, and what ended the connection."""
    try:
        async with connection.channel() as channel:
            declared = await channel.declare_queue(stream, durable=True, arguments=arguments)
            if entrance is not None:
                await declared.bind(*entrance)
    except ChannelPreconditionFailed as error:
        raise mismatch(stream, str(error), movable=False) from error
    except ChannelClosed as error:
        raise AccessRefused(f"{stream}: {error}; {REMEDY}") from error


async def declare_when_up(
    addresses: Sequence[Address],
    names: Names,
    subscriptions: Sequence[Subscription],
    backoff: Any,
    changes: Callable[[], tuple[Container[object], Moved]] = lambda: ((), NOT_MOVED),
    turn: asyncio.Lock | None = None,
) -> dict[str, TidegateError]:
    """Declare as soon as a broker answers; waits without a bound, but takes its turn for each try alone.

    Called by who was let in before: a login that is refused now is waited for as a broker that is away. `changes` tells
    what `declare` is to leave out, and what was moved, by the time of each try.
    """
    told, turn = False, turn or asyncio.Lock()
    while True:
        try:
            async with turn, administration(addresses) as connection:
                return await declare(connection, names, subscriptions, *changes())
        except (LinkRefused, ConnectionError, AMQPError, TimeoutError) as error:
            if not told:
                logger().warning("the topology cannot be declared now", error=str(error) or repr(error))
            told = True
            await asyncio.sleep(backoff())
