"""One delivery from RabbitMQ, and how its outcome is carried out: store every copy, then ack."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, assert_never

from ...errors import BusUnavailable, DeliveryLost, MessageTooLarge, PublishRefused, Unroutable
from ...logs import logger
from ...message import ROUTED, Message, Outgoing, unique
from ...outcome import Ack, DeadLetter, Failure, Outcome, Release, Retry
from .. import Subscription
from . import copies, delay, envelope, wire
from .cascade import Ways
from .channel import Parcel, Received
from .doubts import Doubts, Handing, Settled
from .supervisor import Backoff
from .suspects import BEHIND, SUSPECT, Suspects
from .topology import Names, retry_key


NO_DELAY: Final = timedelta()
FURTHER_KEYS: Final = b"\x02CCA"
"""How the header starts by which a publisher names further routing keys, a list of them."""
LONGEST_HOLD: Final = 15 * 60.0
"""Seconds that a delivery is held while the broker refuses its copy: half of what it allows before it takes it back."""


@dataclass(frozen=True)
class Place:
    """Where deliveries of one subscription come from."""

    subscription: Subscription
    names: Names

    @cached_property
    def events(self) -> str:
        """The topic exchange, by which a first delivery comes."""
        return self.names.events

    @cached_property
    def way(self) -> Ways:
        """The way of a delay that is none of the policy's: back to the own queue, or else to the dead letters."""
        return {self.names.queue(self.subscription): self.names.dead(self.subscription.service)}

    @cached_property
    def _back(self) -> str:
        return self.names.back(self.subscription.service)

    @cached_property
    def _cascade(self) -> str:
        return self.names.of(delay.PREFIX)

    def is_ours(self, exchange: str) -> bool:
        """Tell whether only copies of ours come by this exchange, so that what they say of attempts is true."""
        return exchange == self._back or exchange.startswith(self._cascade)


@dataclass(frozen=True)
class Settling(Place):
    """What deliveries of one subscription need to settle."""

    publish: Callable[[Sequence[Outgoing]], Awaitable[None]]
    store: Callable[[Sequence[Parcel]], Awaitable[None]]
    store_letter: Callable[[Sequence[Parcel]], Awaitable[None]]
    redeclare: Callable[[], Awaitable[object]]
    delay_to: Callable[[Ways], Awaitable[object]]
    answer: Callable[[str, Message], None]
    suspects: Suspects
    doubts: Doubts


class RabbitMQDelivery:
    """A delivery; settling is bound to the life of the channel that it came by."""

    __slots__ = ("__weakref__", "_arrived", "_exchange", "_key", "_outdated", "_received", "_run", "_settling", "_tag")

    def __init__(self, received: Received, settling: Settling) -> None:
        self._received = received
        self._settling = settling
        self._run = ""
        self._outdated = False
        self._tag, redelivered, self._exchange, self._key = wire.delivered(received.method)
        ours, original = settling.is_ours(self._exchange), self._exchange == settling.events
        self._arrived = envelope.decode(
            received.header, received.body, self._key, ours=ours, redelivered=redelivered, original=original
        )

    @property
    def message(self) -> Message:
        """The message."""
        return self._arrived.message

    @property
    def attempt(self) -> int:
        """Failed runs so far, plus one."""
        return self._arrived.attempt

    @property
    def redelivered(self) -> int:
        """How often it came before without an outcome, as far as the broker tells."""
        return self._arrived.redelivered

    @property
    def first_failed_at(self) -> datetime | None:
        """When it first failed in this handler."""
        return self._arrived.first_failed_at

    @property
    def waits_since(self) -> datetime | None:
        """Since when it waits for a worker of another version."""
        return self._arrived.waits_since

    @property
    def routed_by(self) -> str | None:
        """The key by which the topic exchange sent it here; None if it was sent to this queue alone.

        None too where it names further keys: the broker does not tell which of them it was.
        """
        if self._exchange == self._settling.events:
            return None if FURTHER_KEYS in self._received.header else self._key
        return self._arrived.routed_by

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills workers; of what is ordered, the first of a channel is judged before others."""
        arrived = self._arrived
        if not arrived.redelivered or (arrived.counted and arrived.redelivered < SUSPECT):
            return False
        if self._tag == 1 or not self._settling.subscription.ordered:
            return True
        return arrived.counted and arrived.redelivered >= BEHIND

    @property
    def lost(self) -> bool:
        """Whether its channel is gone, or its ack came too late: its queue had handed it out again."""
        return self._outdated or self._received.channel.error is not None

    async def begin(self) -> int:
        """Mark durably that a run begins; return how many never ended. Where it does not begin, no mark is left."""
        suspects, key = self._settling.suspects, self._mark_key
        self._run = self._run or suspects.token()
        began, tried = 0, False

        async def mark() -> None:
            nonlocal began, tried
            tried = True
            began = await suspects.begin(key, self._run)

        try:
            await self._held(mark)
        except (Exception, asyncio.CancelledError):
            if tried:
                await self.end()
            raise
        return began

    async def end(self) -> None:
        """Mark that the run is over."""
        await self._settling.suspects.end(self._mark_key, self._run)

    @property
    def _mark_key(self) -> str:
        message = self.message
        # without an id of its own it is known by what it carries: the same bytes kill again
        known_by = message.body if message.id_made_up else unique(message)
        return f"{self._settling.subscription.handler} {blake2b(known_by, digest_size=16).hexdigest()}"

    async def settle(self, outcome: Outcome) -> None:
        """Carry the outcome out; every copy is confirmed before the original is acked."""
        channel, doubts = self._received.channel, self._settling.doubts
        if isinstance(outcome, Release):
            channel.release([self._tag])
            return
        if self.redelivered and not doubts.none and doubts.settled(self.handed, redelivered=True):
            # it came again while its first handing, whose ack was lost, still ran: all but the ack is done
            outcome = Ack()
        match outcome:
            case Ack(publish=(), complete=None):
                pass
            case Ack():
                await self._stored(outcome)
                self._answer(outcome.reply)
            case Retry(delay=delay, failure=failure):
                store = self._settling.store
                if not await self._kept(failure, lambda: self._copied(store, self._retry(outcome), delay)):
                    return
            case DeadLetter(failure=failure):
                store = self._settling.store_letter
                kept = await self._kept(failure, lambda: self._copied(store, self._dead_letter(outcome)))
                self._answer(outcome.reply)
                if not kept:
                    return
            case _:
                assert_never(outcome)
        self._require_channel()
        # a wait for another version leaves the attempt as it is: its copy must not be taken for what was settled here
        known = self.ack(known=not isinstance(outcome, Retry) or outcome.attempt > self.attempt)
        if known and (channel.doubtful or doubts.any_again):
            self._doubt()

    def _doubt(self) -> None:
        """Note that the ack may be lost. Raises DeliveryLost where it is: the message came again meanwhile."""
        channel, doubts = self._received.channel, self._settling.doubts
        came_again = doubts.came_again(self.handed, self.handing)
        if came_again or channel.doubtful:
            doubts.add([self.handed])
        if came_again:
            self._outdated = True
            raise DeliveryLost(f"{self.message.id}: its queue handed it out again, and takes no ack of the first")

    async def _stored(self, outcome: Ack) -> None:
        if outcome.complete is None:
            self._require_channel()
        if published := outcome.publish:
            try:
                await self._settling.publish(published)
            except MessageTooLarge:
                raise
            except (PublishRefused, BusUnavailable):
                await self._held(lambda: self._settling.publish(published))
        if outcome.complete is not None:
            await outcome.complete()

    def _answer(self, reply: Message | None) -> None:
        if reply is not None and (address := self.message.reply_to) is not None:
            self._settling.answer(address, reply)

    def ack(self, *, known: bool = True) -> bool:
        """Ack it: its outcome is carried out. Return whether it is known, should it come again as the ack was lost."""
        channel = self._received.channel
        channel.settle(self._tag)
        if self.redelivered:
            self._settling.doubts.acked(self.handed, self.handing)
        if known := known and not self.message.id_made_up:
            channel.settled_last.append(self.handed)
        return known

    @property
    def handed(self) -> Settled:
        """What a second handing of the same copy has in common with this one, and a replay has not."""
        exchange = self._exchange
        replay = "" if exchange == self._settling.events else copies.replayed(self._received.header)
        message = self._arrived.message
        return message.source, message.id, self._arrived.attempt, exchange, replay

    @property
    def handing(self) -> Handing:
        """What tells it from every other handing of the same copy."""
        return self._received.channel, self._tag

    async def _copied(
        self, store: Callable[[Sequence[Parcel]], Awaitable[None]], copy: Parcel, delay: timedelta = NO_DELAY
    ) -> None:
        settling = self._settling
        try:
            if delay > NO_DELAY and delay not in settling.subscription.delays:
                await settling.delay_to(settling.way)
            await store([copy])
        except MessageTooLarge:
            raise
        except (Unroutable, PublishRefused) as error:
            # the queue or exchange that the copy goes to may have been deleted: have it declared again
            await settling.redeclare()
            raise PublishRefused(str(error), error.fates) from error

    async def _held(self, store: Callable[[], Awaitable[None]]) -> None:
        """Store, and while the broker refuses try again with backoff; the handler is not run again meanwhile.

        Raises MessageTooLarge.
        """
        channel, backoff = self._received.channel, Backoff(first=0.1, limit=15)
        name, told = self._settling.subscription.name, False
        give_up = asyncio.get_running_loop().time() + LONGEST_HOLD
        while True:
            self._require_channel()
            try:
                await store()
            except MessageTooLarge:
                raise  # there is no waiting for it to become smaller
            except (PublishRefused, BusUnavailable) as error:
                if not told:
                    logger().warning("settling waits", subscription=name, id=self.message.id, error=str(error))
                    told = True
                if asyncio.get_running_loop().time() > give_up:
                    await channel.aclose()
            else:
                return
            try:
                async with asyncio.timeout(backoff()):
                    await channel.closed.wait()
            except TimeoutError:
                continue

    async def _kept(self, failure: Failure, store: Callable[[], Awaitable[None]]) -> bool:
        """Store a copy as `_held` does; tell whether it is stored, and not the broker's to dead-letter."""
        try:
            await self._held(store)
        except MessageTooLarge as error:
            await self._rest(failure, error)
            return False
        return True

    async def _rest(self, failure: Failure, error: MessageTooLarge) -> None:
        """Have the broker dead-letter by itself what is too large for any copy: it looks at no size then.

        What a stream cannot keep as it is, or comes from a queue that is not ours, is held: nothing may lose it.
        """
        channel, subscription = self._received.channel, self._settling.subscription
        about = {"subscription": subscription.name, "id": self.message.id, "error": str(error)}
        about["failure"] = f"{failure.error_type}: {failure.error}"
        if not subscription.sources and copies.streamable(self._received.header):
            self._require_channel()
            logger().error("too large for a copy: the broker dead-letters it by itself, without its record", **about)
            channel.reject(self._tag)
            return
        logger().error("too large for a copy, and held: raise the broker's max_message_size", **about)
        held = 0.0
        if subscription.ordered:
            with suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_HOLD):
                    await channel.closed.wait()
            await channel.aclose()
        else:
            # nobody waits for it here: it may be a suspect, and others have the next turn
            held = LONGEST_HOLD
            asyncio.get_running_loop().call_later(held, channel.release, [self._tag])
        raise DeliveryLost(f"{self.message.id}: it comes again: {error}", held=held)

    def _require_channel(self) -> None:
        if (error := self._received.channel.error) is not None:
            raise DeliveryLost(f"{self.message.id}: it comes again, because its channel is gone: {error}") from error

    def _retry(self, outcome: Retry) -> Parcel:
        names, subscription = self._settling.names, self._settling.subscription
        added: dict[str, Any] = {}
        if outcome.delay <= NO_DELAY:
            exchange, key = names.back(subscription.service), retry_key(subscription.name, NO_DELAY)
        elif outcome.delay in subscription.delays:
            exchange, key = names.retry(subscription.service), retry_key(subscription.name, outcome.delay)
        else:
            exchange, key = delay.entrance(names, outcome.delay), names.queue(subscription)
            added = delay.headers(outcome.delay, delay.TO_QUEUE)
        if self.routed_by is not None:
            added[ROUTED] = True
        flags, properties = copies.retry(self._received.header, self.message, self._arrived.routing_key, outcome, added)
        return Parcel(self.message.id, exchange, key, flags, properties, self._received.body, mandatory=True)

    def _dead_letter(self, outcome: DeadLetter) -> Parcel:
        names, subscription = self._settling.names, self._settling.subscription
        received = self._received
        flags, properties, body = copies.dead_letter(
            received.header, received.body, self.message, self._arrived.routing_key, outcome.failure
        )
        exchange, key = names.dead(subscription.service), names.queue(subscription)
        return Parcel(self.message.id, exchange, key, flags, properties, body, mandatory=True)
