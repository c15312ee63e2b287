"""The shipping service: hands paid orders to the carrier."""

from collections.abc import AsyncIterator, Collection
from uuid import UUID

from bus import Service
from events.payment import PaymentCharged
from events.shipping import ShipmentRefused, ShipmentSent


class AddressRefused(Exception):
    """The carrier does not deliver there."""


class Carrier:
    """The carrier's list of parcels, by order."""

    def __init__(self, *, unserved: Collection[str] = ()) -> None:
        self.parcels: dict[UUID, str] = {}
        self._unserved = unserved

    def collect(self, order_id: UUID, customer_id: str) -> str:
        """Take the parcel of an order, once; returns its tracking code. Raises AddressRefused."""
        if customer_id in self._unserved:
            raise AddressRefused(f"no delivery to the address of {customer_id}")
        return self.parcels.setdefault(order_id, f"TG-{order_id.hex[:12].upper()}")


shipping = Service("shipping")


@shipping.resource
async def carrier() -> AsyncIterator[Carrier]:
    """Open the contract with the carrier."""
    yield Carrier()


@shipping.on(PaymentCharged)
async def ship_order(paid: PaymentCharged, carrier: Carrier) -> ShipmentSent | ShipmentRefused:
    """Ship what is paid, or say that it cannot be shipped."""
    try:
        tracking = carrier.collect(paid.order_id, paid.customer_id)
    except AddressRefused as error:
        return ShipmentRefused(order_id=paid.order_id, customer_id=paid.customer_id, reason=str(error))
    return ShipmentSent(order_id=paid.order_id, customer_id=paid.customer_id, tracking=tracking)
