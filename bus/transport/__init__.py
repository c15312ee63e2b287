"""The one seam between the core and any broker.

A transport moves `Message` values and carries out outcomes; it never decodes a body, never judges a failure and never
calls a handler. Everything here runs on one event loop. Whatever may wait can be cancelled, and nothing is lost by it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self

from ..errors import TidegateError
from ..message import Message, Outgoing
from ..outcome import Letter, Outcome
from ..replies import Replies
from ..topology import Migration, Part, Pruned, Survey


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One handler's durable queue, `{service}.{handler}`, and what the transport must have ready for it.

    `patterns` are the event types and topic patterns that it is bound by; `sources` are foreign queues, consumed as
    they are and never declared; `delays` are the steps of its retry policy. `ordered` means that one worker at a time
    consumes it. A `temporary` one goes away with its consumer.
    """

    service: str
    handler: str
    patterns: tuple[str, ...]
    sources: tuple[str, ...] = ()
    delays: tuple[timedelta, ...] = ()
    ordered: bool = False
    temporary: bool = False

    @property
    def name(self) -> str:
        """The queue's name, without a namespace."""
        return f"{self.service}.{self.handler}"


class Delivery(Protocol):
    """One handing of one message to one handler."""

    @property
    def message(self) -> Message:
        """The message, as it was published."""
        ...

    @property
    def attempt(self) -> int:
        """Failed runs of this message by this handler so far, plus one."""
        ...

    @property
    def redelivered(self) -> int:
        """How often the message came before without an outcome, as far as the broker tells; 0 the first time."""
        ...

    @property
    def first_failed_at(self) -> datetime | None:
        """When this message first failed in this handler; None while it has not."""
        ...

    @property
    def waits_since(self) -> datetime | None:
        """Since when it waits for a worker of another version, by the last outcome; None where it does not."""
        ...

    @property
    def routed_by(self) -> str | None:
        """The key by which the topic exchange sent it here, or an earlier attempt; None if only this queue got it."""
        ...

    @property
    def suspect(self) -> bool:
        """Whether it came back so often without an outcome that it may be what kills workers: run it alone."""
        ...

    @property
    def lost(self) -> bool:
        """Whether it cannot be settled any more: its connection is gone, or its queue handed it out again meanwhile."""
        ...

    async def begin(self) -> int:
        """Note durably that a run of this suspect begins; return how many earlier ones began and never ended.

        Raises DeliveryLost when the delivery's connection is gone before that is noted.
        """
        ...

    async def end(self) -> None:
        """Note that the run which `begin` told of is over, however it ended. Bounded; never raises."""
        ...

    async def settle(self, outcome: Outcome) -> None:
        """Carry the outcome out at the broker; once.

        Every copy (an event to publish, a retry, a dead letter) is stored before the original is acked. Where the
        broker refuses a copy, settling holds the delivery and tries again with backoff. Raises DeliveryLost when the
        delivery is `lost`: the message comes again, or came. A Release never raises. Raises Unroutable when an
        event that was published as `required` matches no queue, and MessageTooLarge when an event is over the broker's
        own limit: the caller judges that as a failure. An original that is too large for a copy is no such error: where
        nothing else can keep it, the delivery is held.

        An outcome's `reply` goes to the message's `reply_to` after the copies and before the ack: once, and nothing
        waits for it. That an address is garbage, or nobody's any more, or not one to answer to, is no failure.

        An Ack's `complete` is awaited once, after the copies and before the reply and the ack; also where the delivery
        is lost by then, and raises DeliveryLost for its ack alone, unless the copies cannot be stored. What it raises
        comes out as it is, with nothing acked: the caller settles the delivery with another outcome then.

        DeliveryLost has `held` where the delivery is held here for so many seconds before the message comes again.
        """
        ...


class Consumer(Protocol):
    """Takes deliveries of one subscription; survives lost connections."""

    @property
    def consuming(self) -> bool:
        """Whether the broker knows it and would send: a consumer is registered there, on a connection that is open.

        At a limit of 0 nothing is registered, and an open connection is enough.
        """
        ...

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> Delivery:
        """Return the next delivery; at once while there is one in the buffer. A cancelled wait loses nothing.

        Many tasks may wait; each delivery goes to one. Raises TopologyMismatch or AccessRefused where waiting cannot
        help; never ends by itself.
        """
        ...

    async def limit(self, unsettled: int) -> None:
        """Hold at most so many unsettled deliveries from now on; 0 stops, and gives back what nobody took yet.

        What is unsettled when the limit is lowered counts no more, as a broker forgets it: the caller counts it.

        On an ordered subscription all that is unsettled goes back first and is lost here, also where the number stays
        the same; it comes again in its order, to this consumer or another. Call it when nothing runs.
        """
        ...


class DeadLetters(Protocol):
    """The dead letters of services: an operator's tool. Looking changes nothing, however often.

    Each verb raises BusUnavailable where the broker does not answer in time, and AccessRefused without the right.
    """

    def browse(self, service: str, *, closed: bool = False) -> AsyncIterator[Letter]:
        """Yield the open letters of a service as of now, or all that are kept, oldest first.

        They are read as they are asked for, so that any number of them fits into memory.
        """
        ...

    async def replay(self, letter: Letter, *, to: str | None = None) -> None:
        """Send the letter back to the handler that gave up on it, as attempt 1, and close it.

        `to` is another subscription (`service.handler`) to send it to. Raises Unroutable when that queue is gone, and
        LookupError when the letter is not open any more, or when somebody else acts on it.
        """
        ...

    async def edit(self, letter: Letter, body: bytes) -> Message:
        """Send a message with another body to the letter's handler, and close the letter, which stays as it was.

        It is another fact, so it has another id, made from the old one and the body, and the old message as its
        cause. Returns it; raises as `replay` does.
        """
        ...

    async def discard(self, letter: Letter) -> None:
        """Close the letter for good. Raises LookupError as `replay` does."""
        ...

    async def packed(self, letter: Letter) -> Mapping[str, object]:
        """Return everything that is needed to restore the letter, on this broker or another, as values of JSON."""
        ...

    async def restore(self, service: str, packed: Mapping[str, object]) -> bool:
        """Keep a packed letter as an open one; return False where it is open already. Raises ValueError for garbage."""
        ...

    async def compact(self, service: str) -> tuple[int, int]:
        """Erase the closed letters for good; return how many are left, and how many were erased.

        It may be cut off at any moment and run again. Raises LookupError where it is under way elsewhere.
        """
        ...


class Topology(Protocol):
    """What is declared at the broker, by whom, and what is left over of it: an operator's tool, and the worker's notes.

    `subscriptions` are all those of the app `app`; what another app declared is never left over. Each verb but `note`
    raises BusUnavailable where the broker does not answer in time, and AccessRefused without the right.
    """

    async def note(self, app: str, worker: str, subscriptions: Sequence[Subscription]) -> Sequence[Part]:
        """Note in the broker's record that a worker declared these, unless that stands there already.

        Returns the queues of their services that no handler has, and nobody consumes. Bounded; where it cannot be done
        that is logged, once.
        """
        ...

    async def survey(self, app: str, subscriptions: Sequence[Subscription]) -> Survey:
        """Return what the code declares, what other versions declared, and what is there of both. Changes nothing."""
        ...

    async def apply(self, app: str, subscriptions: Sequence[Subscription]) -> Sequence[TidegateError]:
        """Declare everything that workers, publishers and this tool need, and note it; consume nothing.

        Returns what is wrong with single parts; the others are declared.
        """
        ...

    async def prune(
        self,
        app: str,
        subscriptions: Sequence[Subscription],
        chosen: Sequence[Part],
        *,
        messages: bool = False,
        consumers: bool = False,
    ) -> Sequence[Pruned]:
        """Remove what is chosen, as far as it is left over still, and note that it is gone.

        What has messages or consumers by then stays, unless `messages` or `consumers` says that they do not matter. It
        may be cut off at any moment, and run again. Raises LookupError where somebody else changes the topology.
        """
        ...

    async def migration(self, app: str, subscription: Subscription) -> Migration:
        """Return what `migrate` would do. Changes nothing. Raises LookupError where there is nothing to do."""
        ...

    async def migrate(self, app: str, subscription: Subscription, tell: Callable[[str, int], None]) -> int:
        """Move a subscription to the arguments that the code declares; return how many messages were moved.

        `tell` is called at each step, and with the number of messages while they are moved. It may be cut off at any
        moment, and run again: nothing is lost, and what was under way then comes twice. Raises LookupError where there
        is nothing to do, where somebody else changes the topology, and where a worker does not leave the queue.
        """
        ...

    def moving(self, subscription: Subscription) -> AsyncIterator[bool]:
        """Yield whether a subscription is being migrated, now and whenever that changes: nothing of it may begin."""
        ...


class Transport(Protocol):
    """A way to a broker."""

    @property
    def topology(self) -> Topology:
        """What is declared at this broker."""
        ...

    @property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of every service on this broker."""
        ...

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Make sure that the queues are there; idempotent. Waits for the broker without a bound; cancel to give up.

        What is wrong with one subscription (TopologyMismatch, AccessRefused) is raised by its consumer, so that the
        others go on. Raises AccessRefused where the broker refuses the login or the virtual host.
        """
        ...

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Store the messages safely, in this order, before returning.

        Waits for the connection up to the publish timeout. Raises PublishError (Unroutable, PublishRefused,
        BusUnavailable) with the fate of each id. A cancelled publish may have been stored.
        """
        ...

    @property
    def replies(self) -> Replies:
        """The requests of this transport that wait for their replies."""
        ...

    async def request(self, message: Message, *, timeout: float) -> Message:
        """Publish a request as `required`, with an address at which replies reach `replies`; return the first.

        Waits for a connection within the timeout. Raises Unroutable and PublishRefused as `publish` does, and what
        `replies` makes of the reply; BusUnavailable where it was not stored in time, or when the connection on which
        the reply would come is lost: it is not sent again, as a handler may have run. Raises TimeoutError where it
        was stored and no reply came. When it is cancelled nothing is left of it here, and it may be handled yet.
        """
        ...

    def consume(self, subscription: Subscription, *, limit: int) -> AbstractAsyncContextManager[Consumer]:
        """Take deliveries of a subscription, at most `limit` unsettled. Leaving gives back the unsettled."""
        ...

    async def aclose(self) -> None:
        """Flush what was settled and published, and end. Bounded; safe to call twice."""
        ...
