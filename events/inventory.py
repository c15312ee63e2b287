"""What the inventory publishes."""

from uuid import UUID

from bus import Event


class StockReserved(Event, type="stock.reserved"):
    """Every line of the order is set aside; `amount` is what they cost, in cents."""

    order_id: UUID
    customer_id: str
    amount: int


class StockRejected(Event, type="stock.rejected"):
    """The order cannot be met, and nothing was set aside; `missing` are the articles that ran out."""

    order_id: UUID
    customer_id: str
    missing: tuple[str, ...]
