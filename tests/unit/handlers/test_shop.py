"""The services together: each story of an order, from the event that places it to the mail that ends it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from uuid import uuid4

from bus.testing import Tester
from events.order import OrderLine, OrderPlaced
from handlers.inventory import Article, Warehouse, inventory
from handlers.notification import Mailbox, notification
from handlers.order import OrderBook, State, order
from handlers.payment import PaymentProvider, payment
from handlers.shipping import Carrier, shipping


PLACED = OrderPlaced(
    order_id=uuid4(),
    customer_id="ada",
    lines=(OrderLine(sku="cup", quantity=2),),
    placed_at=datetime(2026, 1, 1, tzinfo=UTC),
)


class Shop:
    """The whole shop with the state of its services."""

    def __init__(
        self, *, stock: int = 2, provider: PaymentProvider | None = None, carrier: Carrier | None = None
    ) -> None:
        self.warehouse = Warehouse({"cup": Article(stock=stock, price=700)})
        self.provider = provider or PaymentProvider(Random(1), flaky=0)
        self.carrier = carrier or Carrier()
        self.mailbox = Mailbox()
        self.book = OrderBook()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Tester]:
        parts = (self.warehouse, self.provider, self.carrier, self.mailbox, self.book)
        resources = {type(part): part for part in parts}
        async with Tester(inventory, notification, order, payment, shipping, resources=resources) as bus:
            yield bus
            assert bus.dead_letters() == []

    def mails(self) -> list[str]:
        return [mail.text for mail in self.mailbox.sent.values()]


async def test_an_order_is_shipped() -> None:
    shop = Shop()
    async with shop.open() as bus:
        await bus.publish(PLACED)
        await bus.settled()
    assert shop.book.state(PLACED.order_id) == State.SHIPPED
    assert (shop.warehouse.left["cup"], sum(shop.provider.charged.values()), len(shop.carrier.parcels)) == (0, 1400, 1)
    assert shop.mails() == [f"Your order is on its way: {shop.carrier.parcels[PLACED.order_id]}."]


async def test_an_order_is_rejected_when_stock_runs_out() -> None:
    shop = Shop(stock=1)
    async with shop.open() as bus:
        await bus.publish(PLACED)
        await bus.settled()
    assert shop.book.state(PLACED.order_id) == State.REJECTED
    assert (shop.warehouse.left["cup"], shop.provider.charged, shop.carrier.parcels) == (1, {}, {})
    assert shop.mails() == ["Your order failed: we ran out of cup."]


async def test_a_failed_payment_releases_the_stock() -> None:
    shop = Shop(provider=PaymentProvider(Random(1), flaky=0, expired_cards={"ada"}))
    async with shop.open() as bus:
        await bus.publish(PLACED)
        await bus.settled()
    assert shop.book.state(PLACED.order_id) == State.REJECTED
    assert (shop.warehouse.left["cup"], shop.provider.charged, shop.carrier.parcels) == (2, {}, {})
    assert shop.mails() == ["Your order failed: the card has expired."]


async def test_an_order_that_cannot_be_delivered_is_refunded_and_its_stock_released() -> None:
    shop = Shop(carrier=Carrier(unserved={"ada"}))
    async with shop.open() as bus:
        await bus.publish(PLACED)
        await bus.settled()
    assert shop.book.state(PLACED.order_id) == State.REFUNDED
    assert (shop.warehouse.left["cup"], shop.carrier.parcels) == (2, {})
    assert shop.provider.charged == shop.provider.refunded == {PLACED.order_id: 1400}
    assert shop.mails() == ["Your order failed: it cannot be delivered, and you have 14.00 back."]


async def test_an_order_that_comes_twice_is_shipped_once() -> None:
    shop = Shop()
    async with shop.open() as bus:
        await bus.publish(PLACED, id="same")
        await bus.publish(PLACED, id="same")
        await bus.settled()
    assert (shop.warehouse.left["cup"], sum(shop.provider.charged.values()), len(shop.carrier.parcels)) == (0, 1400, 1)
    assert len(shop.mails()) == 1
