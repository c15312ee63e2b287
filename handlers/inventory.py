"""The inventory service: sets stock aside for orders, and gives it back."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from bus import Service
from events.inventory import StockRejected, StockReserved
from events.order import OrderLine, OrderPlaced
from events.payment import PaymentRefunded, PaymentRefused


@dataclass(frozen=True, slots=True)
class Article:
    """What the warehouse starts with of one article, and its price in cents."""

    stock: int
    price: int


ARTICLES = {
    "teapot": Article(stock=180, price=2490),
    "cup": Article(stock=280, price=690),
    "tea": Article(stock=300, price=875),
}


class Warehouse:
    """The stock that is left, and what is set aside for whom."""

    def __init__(self, articles: Mapping[str, Article]) -> None:
        self.left = Counter({sku: article.stock for sku, article in articles.items()})
        self.reserved: dict[UUID, Counter[str]] = {}
        self._articles = articles
        self._missing: dict[UUID, tuple[str, ...]] = {}

    def reserve(self, order_id: UUID, lines: Iterable[OrderLine]) -> tuple[str, ...]:
        """Set all lines aside, or none; returns the articles that ran out. The same order gets the same answer."""
        if order_id not in self._missing:
            wanted: Counter[str] = Counter()
            for line in lines:
                wanted[line.sku] += line.quantity
            self._missing[order_id] = tuple(sku for sku, count in wanted.items() if self.left[sku] < count)
            if not self._missing[order_id]:
                self.left -= wanted
                self.reserved[order_id] = wanted
        return self._missing[order_id]

    def release(self, order_id: UUID) -> None:
        """Put back what was set aside for the order, once."""
        self.left += self.reserved.pop(order_id, Counter())

    def price(self, lines: Iterable[OrderLine]) -> int:
        """Return what the lines cost together, in cents."""
        return sum(self._articles[line.sku].price * line.quantity for line in lines)


inventory = Service("inventory", concurrency=32)


@inventory.resource
async def warehouse() -> AsyncIterator[Warehouse]:
    """Open the warehouse for as long as the worker lives."""
    yield Warehouse(ARTICLES)


@inventory.on(OrderPlaced)
async def reserve_stock(order: OrderPlaced, warehouse: Warehouse) -> StockReserved | StockRejected:
    """Set every line aside, or reject the order."""
    if missing := warehouse.reserve(order.order_id, order.lines):
        return StockRejected(order_id=order.order_id, customer_id=order.customer_id, missing=missing)
    amount = warehouse.price(order.lines)
    return StockReserved(order_id=order.order_id, customer_id=order.customer_id, amount=amount)


@inventory.on(PaymentRefused, PaymentRefunded)
async def release_stock(unpaid: PaymentRefused | PaymentRefunded, warehouse: Warehouse) -> None:
    """Put back what nobody pays for."""
    warehouse.release(unpaid.order_id)
