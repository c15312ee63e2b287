"""What happens in the demo: counts outcomes, and knows what is still under way."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bus import Ack, DeadLetter, Delivery, Events, Handler, Message, Outcome, Process, Release, Retry, Service


@dataclass(slots=True)
class Row:
    """What one handler came to."""

    handled: int = 0
    retries: int = 0
    dead_letters: int = 0


class Watch:
    """Follows each order through its deliveries, from the one that placed it to the last that it caused.

    An order is known by its correlation id; those of an earlier run, which a broker may still hold, are passed over.
    `done` is set when nothing is under way any more.
    """

    def __init__(
        self,
        services: Sequence[Service],
        events: Events,
        *,
        tell: Callable[[Handler, Delivery, Outcome], None],
        finished: Callable[[], None],
    ) -> None:
        handlers = [handler for service in services for handler in service.handlers]
        self.rows = {handler.subscription_name: Row() for handler in handlers}
        self.done = asyncio.Event()
        self._takes = {handler.subscription_name: handler.known(events) for handler in handlers}
        self._left = 0
        self._tell = tell
        self._finished = finished
        self._open: dict[str, set[tuple[str, str]]] = {}
        self._settled: set[tuple[str, str]] = set()

    def expect(self, order: str, message_id: str, type: str) -> None:
        """Wait for a message that belongs to an order: one delivery for each handler that takes its type."""
        if order not in self._open:
            self._open[order] = set()
            self._left += 1
        taking = {(message_id, name) for name in self.takers(type)}
        # what a delivery publishes may be handled before the delivery itself is told of
        self._open[order] |= taking - self._settled

    @property
    def started(self) -> bool:
        """Whether anything is expected yet."""
        return bool(self._open)

    def knows(self, message: Message) -> bool:
        """Tell whether the message belongs to one of the orders."""
        return _order(message) in self._open

    def takers(self, type: str) -> list[str]:
        """Return the handlers that take events of a type."""
        return [name for name, known in self._takes.items() if type in known]

    def under_way(self) -> Counter[str]:
        """Return how many deliveries each handler still owes."""
        return Counter(name for owed in self._open.values() for _, name in owed)

    def middleware(self, handler: Handler, process: Process) -> Process:
        """Wrap one handler's processing; it is told of outcomes that are settled."""

        async def watched(delivery: Delivery) -> Outcome:
            outcome = await process(delivery)
            if self.knows(delivery.message):
                self._note(_order(delivery.message), handler, delivery, outcome)
            return outcome

        return watched

    def _note(self, order: str, handler: Handler, delivery: Delivery, outcome: Outcome) -> None:
        row = self.rows[handler.subscription_name]
        match outcome:
            case Ack(publish=published):
                row.handled += 1
                for outgoing in published:
                    self.expect(order, outgoing.message.id, outgoing.message.type)
            case Retry():
                row.retries += 1
            case DeadLetter():
                row.dead_letters += 1
            case Release():
                pass
        self._tell(handler, delivery, outcome)
        if isinstance(outcome, Ack | DeadLetter):
            self._close(order, (delivery.message.id, handler.subscription_name))

    def _close(self, order: str, delivery: tuple[str, str]) -> None:
        self._settled.add(delivery)
        owed = self._open[order]
        if not owed:
            return
        owed.discard(delivery)
        if not owed:
            self._left -= 1
            self._finished()
            if self._left == 0:
                self.done.set()


def _order(message: Message) -> str:
    return message.correlation_id or message.id
