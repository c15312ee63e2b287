"""Idempotency: a message whose completion was recorded is not run again.

A handler with `idempotent=True` has a unit around each of its deliveries: the delivery, and its completion in the
service's store. The unit completes what is acked, between its events and its ack, and undoes what is not.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import Final

from .errors import DeliveryLost, TidegateError
from .failure import described, text_of
from .logs import logger
from .message import Message, unique
from .outcome import Ack, DeadLetter, Outcome, Retry
from .service import Handler, Process
from .store import AlreadyCompleted, Completion, OpenStore
from .transport import Delivery
from .wrapped import WrappedDelivery


COMPLETED: Final = "completed before"
"""What a handler's flow counts, of deliveries that were not run."""
WITHOUT_ID: Final = "without an id"
"""What a handler's flow counts, of deliveries that were run though nobody can tell whether they ran before."""


class NotCompleted(TidegateError):
    """The store did not commit. The cause is what it raised."""


class Unit(WrappedDelivery):
    """A delivery of an idempotent handler, and its completion.

    What the store raises is a failure of this run, and of nothing else.
    """

    __slots__ = ("_completion", "_handler", "_store", "_told", "committed", "known")

    def __init__(self, delivery: Delivery, handler: Handler, store: OpenStore) -> None:
        super().__init__(delivery)
        self._completion: Completion | None = None
        self._handler = handler
        self._store = store
        self._told = False
        self.committed = False
        """Whether its completion is recorded, by this run or by another at the same time."""
        self.known = False
        """Whether it was completed before, so that nothing is left to do but to ack it."""

    @property
    def completion(self) -> Completion:
        """The completion, made when it is first asked for: by a handler that wants its transaction, or by the ack."""
        if self._completion is None:
            message = self.message
            self._completion = self._store.completion(None if message.id_made_up else key_of(self._handler, message))
        return self._completion

    @property
    def attempt(self) -> int:
        """Failed runs so far, plus one."""
        return self._delivery.attempt

    @property
    def first_failed_at(self) -> datetime | None:
        """When it first failed in this handler."""
        return self._delivery.first_failed_at

    @property
    def waits_since(self) -> datetime | None:
        """Since when it waits for a worker of another version."""
        return self._delivery.waits_since

    async def settle(self, outcome: Outcome) -> None:
        """Carry the outcome out: an ack after the completion is recorded, any other after what was written is undone.

        Where the delivery is lost by then, what was written is committed all the same, so that the handler need not run
        again: its ack is what is left. Raises NotCompleted where the store did not commit.
        """
        if not isinstance(outcome, Ack):
            await self.rollback()
        elif not self.known:
            if self.lost and (self.message.id_made_up or not self.undone):
                # nothing needs to be committed now, or nobody could tell afterwards that it was
                raise DeliveryLost(f"{self.message.id}: it comes again, because its delivery was lost")
            outcome = replace(outcome, complete=self._complete)
        await self._delivery.settle(outcome)

    async def rollback(self) -> None:
        """Undo what was not committed. A store that cannot is told of: without a commit it keeps nothing either."""
        if self._completion is not None:
            try:
                await self._completion.rollback()
            except Exception as error:
                self._tell("not rolled back", error)

    @property
    def undone(self) -> bool:
        """Whether its handler wrote something that was not committed, so that it must run again."""
        if self.committed or self._completion is None:
            return False
        try:
            return self._completion.used
        except Exception as error:
            self._tell("not known whether it wrote", error)
            return True

    def _tell(self, what: str, error: Exception) -> None:
        if self._told:
            return
        self._told, handler = True, self._handler
        logger().warning(
            what, service=handler.service, handler=handler.name, id=self.message.id, error=described(error)
        )

    async def _complete(self) -> None:
        try:
            await self.completion.commit()
        except AlreadyCompleted:
            pass  # by another run at the same time: its effects count, and what this one published has the same ids
        except Exception as error:
            raise NotCompleted(f"the store did not commit: {text_of(error)}") from error
        self.committed = True


def units(handler: Handler, store: OpenStore, process: Process) -> Process:
    """Return the outermost step, which makes a unit of each delivery and ends it, however it ended."""
    told = False

    async def run(delivery: Delivery) -> Outcome:
        nonlocal told
        message = delivery.message
        if message.id_made_up:
            handler.flow.counts[WITHOUT_ID] += 1
            if not told:
                told = True
                logger().warning(
                    "not idempotent",
                    handler=handler.subscription_name,
                    type=message.type,
                    told="the message came without an id, so it is run each time it comes; later ones are counted only",
                )
        unit = Unit(delivery, handler, store)
        try:
            return await process(unit)
        finally:
            await unit.rollback()

    return run


def once(handler: Handler, store: OpenStore, process: Process) -> Process:
    """Return the innermost step: what was completed is acked, and everything else is run."""

    async def run(delivery: Delivery) -> Outcome:
        unit = unit_of(delivery)
        message = unit.message
        if not message.id_made_up and await store.completed(key_of(handler, message)):
            return _known(handler, unit)
        outcome = await process(delivery)
        if isinstance(outcome, Retry | DeadLetter) and isinstance(outcome.failure.exception, AlreadyCompleted):
            return _known(handler, unit)
        return outcome

    return run


def _known(handler: Handler, unit: Unit) -> Ack:
    handler.flow.counts[COMPLETED] += 1
    unit.known = True
    return Ack(ran=False)


def left(delivery: Delivery, lost: Outcome | None) -> Outcome | None:
    """Return what is left to do of an outcome that was lost, when its message comes again.

    A success that was committed is acked then, and one whose writes were not committed is not one: it runs again.
    """
    if not isinstance(delivery, Unit) or not isinstance(lost, Ack):
        return lost
    if delivery.committed:
        return replace(lost, publish=())
    return None if delivery.undone else lost


def unit_of(delivery: Delivery) -> Unit:
    """Return the unit that a delivery is."""
    if not isinstance(delivery, Unit):
        raise TidegateError(
            f"a middleware handed on {type(delivery).__qualname__} in place of the delivery it was given"
        )
    return delivery


def key_of(handler: Handler, message: Message) -> str:
    """Return what a completion is recorded by: the subscription, and a hash of what makes a message unique."""
    return f"{handler.subscription_name} {blake2b(unique(message), digest_size=16).hexdigest()}"
