"""The order service: knows how far each order got, from what the other services say."""

from collections.abc import AsyncIterator
from enum import IntEnum
from uuid import UUID

from bus import Service
from events.inventory import StockRejected
from events.order import OrderPlaced
from events.payment import PaymentCharged, PaymentRefunded, PaymentRefused
from events.shipping import ShipmentSent


class State(IntEnum):
    """How far an order got; it ends as one of the last three."""

    PLACED = 1
    PAID = 2
    SHIPPED = 3
    REJECTED = 4
    REFUNDED = 5


class OrderBook:
    """Every state that each order was in. Events come from several services, so in any order, and more than once."""

    def __init__(self) -> None:
        self._states: dict[UUID, set[State]] = {}

    def note(self, order_id: UUID, state: State) -> None:
        """Write down that the order reached a state."""
        self._states.setdefault(order_id, set()).add(state)

    def state(self, order_id: UUID) -> State:
        """Return how far the order got."""
        return max(self._states[order_id])

    def reached(self, state: State) -> set[UUID]:
        """Return the orders that were ever in a state."""
        return {order_id for order_id, states in self._states.items() if state in states}


order = Service("order")


@order.resource
async def book() -> AsyncIterator[OrderBook]:
    """Keep the book for as long as the worker lives; a real service would open its database here."""
    yield OrderBook()


@order.on(OrderPlaced)
async def note_placed(placed: OrderPlaced, book: OrderBook) -> None:
    """Enter the order into the book."""
    book.note(placed.order_id, State.PLACED)


@order.on(PaymentCharged)
async def note_paid(charged: PaymentCharged, book: OrderBook) -> None:
    """Note that the customer paid."""
    book.note(charged.order_id, State.PAID)


@order.on(ShipmentSent)
async def note_shipped(sent: ShipmentSent, book: OrderBook) -> None:
    """Note the good end."""
    book.note(sent.order_id, State.SHIPPED)


@order.on(StockRejected, PaymentRefused)
async def note_rejected(rejected: StockRejected | PaymentRefused, book: OrderBook) -> None:
    """Note that there were no goods for the order, or no money."""
    book.note(rejected.order_id, State.REJECTED)


@order.on(PaymentRefunded)
async def note_refunded(refunded: PaymentRefunded, book: OrderBook) -> None:
    """Note that the order could not be shipped, and that the customer has the money back."""
    book.note(refunded.order_id, State.REFUNDED)
