"""Shipping hands each paid order to the carrier, once."""

from uuid import uuid4

from bus.testing import Tester
from events.payment import PaymentCharged
from events.shipping import ShipmentRefused, ShipmentSent
from handlers.shipping import Carrier, ship_order, shipping


PAID = PaymentCharged(order_id=uuid4(), customer_id="ada", amount=3900)


async def test_a_paid_order_is_shipped_once() -> None:
    carrier = Carrier()
    first = await ship_order(PAID, carrier)
    assert await ship_order(PAID, carrier) == first
    assert first == ShipmentSent(order_id=PAID.order_id, customer_id="ada", tracking=carrier.parcels[PAID.order_id])
    assert len(carrier.parcels) == 1


async def test_an_address_that_is_refused_is_an_event_and_no_failure() -> None:
    carrier = Carrier(unserved={"ada"})
    async with Tester(shipping, resources={Carrier: carrier}) as bus:
        await bus.publish(PAID)
        await bus.settled()
        reason = "no delivery to the address of ada"
        assert bus.published(ShipmentRefused) == [
            ShipmentRefused(order_id=PAID.order_id, customer_id="ada", reason=reason)
        ]
        assert bus.dead_letters() == []
    assert carrier.parcels == {}
