"""What the payment service publishes. Amounts are in cents."""

from uuid import UUID

from bus import Event


class PaymentCharged(Event, type="payment.charged"):
    """The customer paid the order."""

    order_id: UUID
    customer_id: str
    amount: int


class PaymentRefused(Event, type="payment.refused"):
    """The customer's card was refused; nothing was charged."""

    order_id: UUID
    customer_id: str
    reason: str


class PaymentRefunded(Event, type="payment.refunded"):
    """The customer has the money of the order back."""

    order_id: UUID
    customer_id: str
    amount: int
