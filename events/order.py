"""What the order service publishes."""

from typing import Annotated
from uuid import UUID

from pydantic import AwareDatetime, Field

from bus import Data, Event


class OrderLine(Data):
    """One article of an order, and how many of it."""

    sku: str
    quantity: Annotated[int, Field(gt=0)]


class OrderPlaced(Event, type="order.placed", version=1):
    """A customer ordered."""

    order_id: UUID
    customer_id: str
    lines: Annotated[tuple[OrderLine, ...], Field(min_length=1)]
    placed_at: AwareDatetime
