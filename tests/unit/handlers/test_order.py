"""The order book follows each order, whatever the order of events."""

from datetime import UTC, datetime
from itertools import permutations
from uuid import uuid4

import pytest

from bus import Event
from bus.testing import Tester
from events.inventory import StockRejected
from events.order import OrderLine, OrderPlaced
from events.payment import PaymentCharged, PaymentRefunded, PaymentRefused
from events.shipping import ShipmentSent
from handlers.order import OrderBook, State, order


ORDER = uuid4()
PLACED = OrderPlaced(
    order_id=ORDER,
    customer_id="ada",
    lines=(OrderLine(sku="cup", quantity=1),),
    placed_at=datetime(2026, 1, 1, tzinfo=UTC),
)
PAID = PaymentCharged(order_id=ORDER, customer_id="ada", amount=700)
STORIES: list[tuple[tuple[Event, ...], State]] = [
    ((PLACED,), State.PLACED),
    ((PLACED, PAID), State.PAID),
    ((PLACED, PAID, ShipmentSent(order_id=ORDER, customer_id="ada", tracking="TG-1")), State.SHIPPED),
    ((PLACED, StockRejected(order_id=ORDER, customer_id="ada", missing=("cup",))), State.REJECTED),
    ((PLACED, PaymentRefused(order_id=ORDER, customer_id="ada", reason="expired")), State.REJECTED),
    ((PLACED, PAID, PaymentRefunded(order_id=ORDER, customer_id="ada", amount=700)), State.REFUNDED),
]


@pytest.mark.parametrize(("events", "state"), STORIES)
async def test_an_order_is_where_its_events_say_in_whatever_order_they_come(
    events: tuple[Event, ...], state: State
) -> None:
    for shuffled in permutations(events):
        book = OrderBook()
        async with Tester(order, resources={OrderBook: book}) as bus:
            await bus.publish(*shuffled)
            await bus.settled()
        assert book.state(ORDER) == state
        assert book.reached(state) == {ORDER}
        assert book.reached(State.PLACED) == {ORDER}
