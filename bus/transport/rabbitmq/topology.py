"""The queues and exchanges at the broker: their names, in one place, and their declaration through aio-pika.

Arguments of a queue are immutable at the broker, so they are what DESIGN says from the first day. Connections here are
plain and short-lived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.common import FieldTable

from ...errors import AccessRefused, BusUnavailable, ConfigurationError, TidegateError, TopologyMismatch
from ...logs import logger
from .. import Subscription
from .address import Address
from .channel import LinkLost
from .link import Link, LinkRefused
from .supervisor import FIRST_PATIENCE, PATIENCE


DELIVERY_LIMIT: Final = 1_000
"""A backstop only: what kills workers is dead-lettered long before. Never -1: 3.10 discards after one return."""
CONSUMER_TIMEOUT: Final = 1_800_000
CLOSE_WITHIN: Final = 2.0
ANSWER_WITHIN: Final = 30.0
"""Seconds that one subscription, or the delay cascade, may take to be declared before its connection is given up."""
HEARTBEAT: Final = 10
STREAM: Final[FieldTable] = {"x-queue-type": "stream"}
"""Arguments of a generation of dead letters: kept without limit."""
MARKS_LAST: Final = "7D"
MARKS: Final = "suspects"
"""The routing key of the marks: by it they go from the exchange of the retries to their stream, and no retry has it."""
SEGMENT: Final = 1_000_000
"""Bytes after which a stream begins a new file; only whole files grow old enough to go."""


REMEDY: Final = "run `python app.py topology apply` as a user who may configure"
NONE: Final = timedelta()


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


@asynccontextmanager
async def administration(addresses: Sequence[Address]) -> AsyncIterator[AbstractConnection]:
    """Open a plain connection to the first host that answers, and close it in the end.

    Raises LinkRefused for a definite no, and ConnectionError where no host answers, or where the connection is lost.
    After a failure a deque of addresses is turned: a host may answer and still not serve.
    """
    connection = await _connect(tuple(addresses))
    failed = True
    try:
        yield connection
        failed = False
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        # aiormq ends whoever waits on a connection that it lost by a cancellation
        raise ConnectionError("the connection was lost") from error
    except (RuntimeError, OSError, EOFError) as error:
        # and a call on one that is gone by such as these
        raise ConnectionError(f"the connection was lost: {error!r}") from error
    finally:
        if failed and isinstance(addresses, deque):
            addresses.rotate(-1)
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await connection.close()
        except (TimeoutError, AMQPError, RuntimeError, OSError, EOFError):
            pass  # the peer is gone


async def _connect(addresses: Sequence[Address]) -> AbstractConnection:
    reasons, refused, patience = [], None, FIRST_PATIENCE
    while True:
        for address in addresses:
            try:
                return await _connect_to(address, patience)
            except ConfigurationError as error:
                refused = LinkRefused(str(error))
            except (OSError, EOFError, RuntimeError, AMQPError, UnicodeError) as error:
                reasons.append(f"{address}: {error!r}")
                if not isinstance(error, TimeoutError):
                    refused = await _refusal(address, patience) or refused
        if refused is not None:
            raise refused
        if patience == PATIENCE:
            raise ConnectionError("; ".join(reasons[-len(addresses) :]))
        patience = PATIENCE


async def _refusal(address: Address, patience: float) -> LinkRefused | None:
    """Return what our own link is refused for: it tells a definite no from a host that is in trouble."""
    try:
        link = await Link.connect(address, timeout=patience)
    except LinkRefused as refused:
        return refused
    except LinkLost:
        return None
    await link.aclose()
    return None


async def _connect_to(address: Address, patience: float) -> AbstractConnection:
    context = address.context()
    try:
        return await aio_pika.connect(
            host=address.host,
            port=address.port,
            login=address.login,
            password=address.secret(),
            virtualhost=address.vhost,
            ssl=context is not None,
            ssl_context=context,
            timeout=patience,
            heartbeat=HEARTBEAT,
            client_properties={"connection_name": f"{address.name} administration"},
        )
    except asyncio.CancelledError as error:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from error


async def declare(
    connection: AbstractConnection, names: Names, subscriptions: Sequence[Subscription]
) -> dict[str, TidegateError]:
    """Declare what the subscriptions need; return what is wrong, by subscription.

    A user that may not configure is no error here, unless something is missing.
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
                await _declare_subscription(channel, names, subscription)
                await channel.close()
        except ChannelPreconditionFailed as error:
            faults[subscription.name] = mismatch(subscription.name, str(error))
        except ChannelClosed as error:
            if "ACCESS_REFUSED" not in str(error):
                raise
            if (missing := await _missing(connection, names, subscription)) is not None:
                faults[subscription.name] = AccessRefused(f"{missing}, and cannot be declared: {error}; {REMEDY}")
    return faults


async def _missing(connection: AbstractConnection, names: Names, subscription: Subscription) -> str | None:
    """Return what the broker says of the first thing that is not there; 4.3 lets nobody look who may not configure."""
    service = subscription.service
    try:
        async with asyncio.timeout(ANSWER_WITHIN), connection.channel() as channel:
            for exchange in (names.events, names.dead(service), names.retry(service), names.back(service)):
                await channel.get_exchange(exchange)
            for queue in (
                names.queue(subscription),
                *(names.step(service, d) for d in subscription.delays if d > NONE),
            ):
                await channel.get_queue(queue)
    except ChannelNotFoundEntity as error:
        return str(error)
    except ChannelClosed as error:
        if "ACCESS_REFUSED" not in str(error):
            raise
    return None


def mismatch(subscription: str, told: str) -> TopologyMismatch:
    """Return the error for a queue or exchange that exists with other arguments."""
    if "x-single-active-consumer" in told:
        return TopologyMismatch(
            f"{subscription}: {told}. Its handler has ordered_by= and the queue was made without, or the other way "
            "round, and a broker never changes what exists. Give the handler another name=, and so a queue of its own; "
            "keep a worker of the version before until it has emptied the old queue, then delete that. Or stop the "
            "publishers, let the queue run empty, delete it and start again."
        )
    return TopologyMismatch(
        f"{subscription}: {told}. It was declared by another version or by hand, and a broker never changes the "
        "arguments of what exists. Let its queue run empty and delete it, or go back to the version that made it."
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
            # a compaction went on meanwhile: its next run sweeps up what was declared here
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


async def _declare_subscription(channel: AbstractChannel, names: Names, subscription: Subscription) -> None:
    queue = await channel.declare_queue(
        names.queue(subscription), durable=True, arguments=queue_arguments(names, subscription)
    )
    await queue.bind(names.back(subscription.service), f"*.{subscription.name}")
    for delay in subscription.delays:
        if delay <= timedelta():
            continue
        step = await channel.declare_queue(
            names.step(subscription.service, delay),
            durable=True,
            arguments=step_arguments(names, subscription.service, delay),
        )
        await step.bind(names.retry(subscription.service), f"{milliseconds(delay)}.#")
    for pattern in subscription.patterns:
        await queue.bind(names.events, pattern)


async def declare_suspects(addresses: Sequence[Address], names: Names, service: str) -> None:
    """Declare the stream of a service's suspects. Raises AccessRefused without the right to."""
    stream = names.suspects(service)
    arguments: FieldTable = {
        "x-queue-type": "stream",
        "x-max-age": MARKS_LAST,
        "x-stream-max-segment-size-bytes": SEGMENT,
    }
    try:
        async with (
            asyncio.timeout(ANSWER_WITHIN),
            administration(addresses) as connection,
            connection.channel() as channel,
        ):
            marks = await channel.declare_queue(stream, durable=True, arguments=arguments)
            await marks.bind(names.retry(service), MARKS)
    except ChannelClosed as error:
        raise AccessRefused(f"{stream}: {error}; {REMEDY}") from error
    except (LinkRefused, ConnectionError, AMQPError, TimeoutError) as error:
        raise BusUnavailable(f"{stream} cannot be declared now: {error!r}", {}) from error


async def declare_when_up(
    addresses: Sequence[Address], names: Names, subscriptions: Sequence[Subscription], backoff: Any
) -> dict[str, TidegateError]:
    """Declare as soon as a broker answers; waits without a bound.

    Called by who was let in before: a login that is refused now is waited for as a broker that is away.
    """
    told = False
    while True:
        try:
            async with administration(addresses) as connection:
                return await declare(connection, names, subscriptions)
        except (LinkRefused, ConnectionError, AMQPError, TimeoutError) as error:
            if not told:
                logger().warning("the topology cannot be declared now", error=str(error) or repr(error))
            told = True
            await asyncio.sleep(backoff())
