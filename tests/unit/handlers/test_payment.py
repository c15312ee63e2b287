"""Payment charges each order once, however often its provider fails."""

from random import Random
from uuid import UUID, uuid4

import pytest

from bus.testing import Tester
from events.inventory import StockReserved
from events.payment import PaymentCharged, PaymentRefunded, PaymentRefused
from events.shipping import ShipmentRefused
from handlers.payment import PaymentProvider, payment


class Scripted(Random):
    """Says in advance at which calls the network fails."""

    def __init__(self, *fails: bool) -> None:
        super().__init__()
        self._fails = list(fails)

    def random(self) -> float:
        return 0.0 if self._fails and self._fails.pop(0) else 0.99


@pytest.fixture
def reserved() -> StockReserved:
    return StockReserved(order_id=uuid4(), customer_id="ada", amount=3900)


def charged(reserved: StockReserved) -> PaymentCharged:
    return PaymentCharged(order_id=reserved.order_id, customer_id="ada", amount=3900)


async def test_what_was_reserved_is_charged(reserved: StockReserved) -> None:
    provider = PaymentProvider(Scripted())
    async with Tester(payment, resources={PaymentProvider: provider}) as bus:
        await bus.publish(reserved)
        await bus.settled()
        assert bus.published(PaymentCharged) == [charged(reserved)]
    assert provider.charged == {reserved.order_id: 3900}


@pytest.mark.parametrize("fails", [(True,), (False, True), (True, False, True, False, True)])
async def test_a_provider_that_fails_charges_once_in_the_end(reserved: StockReserved, fails: tuple[bool, ...]) -> None:
    provider = PaymentProvider(Scripted(*fails))
    async with Tester(payment, resources={PaymentProvider: provider}) as bus:
        await bus.publish(reserved)
        await bus.settled()
        assert bus.published(PaymentCharged) == [charged(reserved)]
        assert bus.dead_letters() == []
    assert provider.charged == {reserved.order_id: 3900}


async def test_a_provider_that_stays_down_ends_in_a_dead_letter(reserved: StockReserved) -> None:
    async with Tester(payment, resources={PaymentProvider: PaymentProvider(Random(1), flaky=1)}) as bus:
        await bus.publish(reserved)
        await bus.settled()
        [letter] = bus.dead_letters()
        assert (letter.handler, letter.failure.reason, letter.failure.attempts) == ("charge_order", "exhausted", 10)


async def test_a_refused_card_is_not_charged(reserved: StockReserved) -> None:
    provider = PaymentProvider(Scripted(), expired_cards={"ada"})
    async with Tester(payment, resources={PaymentProvider: provider}) as bus:
        await bus.publish(reserved)
        await bus.settled()
        refused = PaymentRefused(order_id=reserved.order_id, customer_id="ada", reason="the card has expired")
        assert bus.published(PaymentRefused) == [refused]
    assert provider.charged == {}


async def test_what_cannot_be_shipped_is_refunded(reserved: StockReserved) -> None:
    provider = PaymentProvider(Scripted())
    async with Tester(payment, resources={PaymentProvider: provider}) as bus:
        await bus.publish(reserved)
        await bus.settled()
        await bus.publish(ShipmentRefused(order_id=reserved.order_id, customer_id="ada", reason="no road"))
        await bus.settled()
        refunded = PaymentRefunded(order_id=reserved.order_id, customer_id="ada", amount=3900)
        assert bus.published(PaymentRefunded) == [refunded]
    assert provider.refunded == {reserved.order_id: 3900}


async def test_a_refund_without_a_charge_is_not_retried() -> None:
    async with Tester(payment, resources={PaymentProvider: PaymentProvider(Scripted())}) as bus:
        await bus.publish(ShipmentRefused(order_id=UUID(int=1), customer_id="ada", reason="no road"))
        await bus.settled()
        [letter] = bus.dead_letters()
        assert (letter.failure.error_type, letter.failure.attempts) == ("KeyError", 1)
