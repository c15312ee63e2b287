"""The notification service: tells customers how their orders ended."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

from bus import Context, Reject, Service
from events.inventory import StockRejected
from events.payment import PaymentRefunded, PaymentRefused
from events.shipping import ShipmentSent


@dataclass(frozen=True, slots=True)
class Mail:
    """What a customer reads."""

    customer_id: str
    order_id: UUID
    text: str


class Mailbox:
    """The mails that went out, by the id of the message that they answer: told once is enough."""

    def __init__(self, *, unreachable: Collection[str] = ()) -> None:
        self.sent: dict[str, Mail] = {}
        self._unreachable = unreachable

    def send(self, message_id: str, mail: Mail) -> None:
        """Send a mail, once per message. Raises Reject for a customer who has no address: no retry would help."""
        if mail.customer_id in self._unreachable:
            raise Reject(f"{mail.customer_id} gave no mail address")
        self.sent.setdefault(message_id, mail)


notification = Service("notification")


@notification.resource
async def mailbox() -> AsyncIterator[Mailbox]:
    """Open the mailbox."""
    yield Mailbox()


@notification.on(ShipmentSent)
async def tell_shipped(sent: ShipmentSent, context: Context, mailbox: Mailbox) -> None:
    """Tell the tracking code."""
    text = f"Your order is on its way: {sent.tracking}."
    mailbox.send(context.message.id, Mail(sent.customer_id, sent.order_id, text))


@notification.on(StockRejected, PaymentRefused, PaymentRefunded)
async def tell_failed(
    failed: StockRejected | PaymentRefused | PaymentRefunded, context: Context, mailbox: Mailbox
) -> None:
    """Tell what went wrong, and that nobody paid for it."""
    match failed:
        case StockRejected():
            why = f"we ran out of {', '.join(failed.missing)}"
        case PaymentRefused():
            why = failed.reason
        case PaymentRefunded():
            why = f"it cannot be delivered, and you have {failed.amount / 100:.2f} back"
        case _:
            assert_never(failed)
    mailbox.send(context.message.id, Mail(failed.customer_id, failed.order_id, f"Your order failed: {why}."))
