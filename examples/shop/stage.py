"""What goes into the demo: the orders, and the state behind the services where the demo can see it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

from events.order import OrderLine, OrderPlaced
from handlers.inventory import ARTICLES, Warehouse
from handlers.notification import Mailbox
from handlers.order import OrderBook
from handlers.payment import PaymentProvider
from handlers.shipping import Carrier


CUSTOMERS = tuple(f"customer-{number:02}" for number in range(40))
EXPIRED_CARDS = frozenset({"customer-07", "customer-23"})
UNSERVED = frozenset({"customer-11", "customer-31"})
UNREACHABLE = frozenset({"customer-19"})


def _provider() -> PaymentProvider:
    return PaymentProvider(Random(7), flaky=0.1, expired_cards=EXPIRED_CARDS)


@dataclass(frozen=True, slots=True)
class Stage:
    """The state of each service, made for one run of the demo."""

    warehouse: Warehouse = field(default_factory=lambda: Warehouse(ARTICLES))
    provider: PaymentProvider = field(default_factory=_provider)
    carrier: Carrier = field(default_factory=lambda: Carrier(unserved=UNSERVED))
    mailbox: Mailbox = field(default_factory=lambda: Mailbox(unreachable=UNREACHABLE))
    book: OrderBook = field(default_factory=OrderBook)

    def provided(self) -> Mapping[type, Any]:
        """Return the resources that the services get instead of their own."""
        return {type(part): part for part in (self.warehouse, self.provider, self.carrier, self.mailbox, self.book)}


def orders(count: int, random: Random) -> list[OrderPlaced]:
    """Return orders of the customers in turn, with articles by chance."""
    return [
        OrderPlaced(
            order_id=uuid4(),
            customer_id=CUSTOMERS[number % len(CUSTOMERS)],
            lines=tuple(
                OrderLine(sku=sku, quantity=random.randint(1, 3))
                for sku in random.sample(sorted(ARTICLES), random.randint(1, len(ARTICLES)))
            ),
            placed_at=datetime.now(UTC),
        )
        for number in range(count)
    ]
