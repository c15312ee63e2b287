"""What the shipping service publishes."""

from uuid import UUID

from bus import Event


class ShipmentSent(Event, type="shipment.sent"):
    """The order is on its way; the customer can follow it by its tracking code."""

    order_id: UUID
    customer_id: str
    tracking: str


class ShipmentRefused(Event, type="shipment.refused"):
    """The carrier does not deliver to this customer's address; the order stays where it is."""

    order_id: UUID
    customer_id: str
    reason: str
