"""The payment service: charges orders through a provider that is not always there."""

import asyncio
from collections.abc import AsyncIterator, Collection
from random import Random
from uuid import UUID

from bus import Service, exponential
from events.inventory import StockReserved
from events.payment import PaymentCharged, PaymentRefunded, PaymentRefused
from events.shipping import ShipmentRefused


class ProviderDown(Exception):
    """The provider did not answer; whether it did what it was asked for, nobody knows."""


class PaymentProvider:
    """A provider that fails now and then, before the money moved or after. Money moves once per order id."""

    def __init__(self, random: Random, *, flaky: float = 0.1, expired_cards: Collection[str] = ()) -> None:
        self.charged: dict[UUID, int] = {}
        self.refunded: dict[UUID, int] = {}
        self._random = random
        self._flaky = flaky
        self._expired_cards = expired_cards

    async def charge(self, order_id: UUID, customer_id: str, amount: int) -> bool:
        """Take the money; False where the card is refused. Raises ProviderDown."""
        await self._network("no connection")
        if customer_id in self._expired_cards:
            return False
        self.charged.setdefault(order_id, amount)
        await self._network("charged, but the answer was lost")
        return True

    async def refund(self, order_id: UUID) -> int:
        """Give the money back; returns how much it was. Raises ProviderDown."""
        await self._network("no connection")
        return self.refunded.setdefault(order_id, self.charged[order_id])

    async def _network(self, trouble: str) -> None:
        await asyncio.sleep(0.002)
        if self._random.random() < self._flaky:
            raise ProviderDown(trouble)


payment = Service("payment", concurrency=8)
patient = exponential(attempts=10, first=0.05, factor=2, limit=0.8).retry_on(ProviderDown, TimeoutError)


@payment.resource
async def provider() -> AsyncIterator[PaymentProvider]:
    """Open the provider's account; a real service would open an HTTP client here."""
    yield PaymentProvider(Random(7))


@payment.on(StockReserved, retry=patient, timeout=5)
async def charge_order(stock: StockReserved, provider: PaymentProvider) -> PaymentCharged | PaymentRefused:
    """Charge what was reserved. A retry after a lost answer charges nothing twice."""
    if await provider.charge(stock.order_id, stock.customer_id, stock.amount):
        return PaymentCharged(order_id=stock.order_id, customer_id=stock.customer_id, amount=stock.amount)
    return PaymentRefused(order_id=stock.order_id, customer_id=stock.customer_id, reason="the card has expired")


@payment.on(ShipmentRefused, retry=patient, timeout=5)
async def refund_order(refused: ShipmentRefused, provider: PaymentProvider) -> PaymentRefunded:
    """Give the money back for what cannot be shipped."""
    amount = await provider.refund(refused.order_id)
    return PaymentRefunded(order_id=refused.order_id, customer_id=refused.customer_id, amount=amount)
