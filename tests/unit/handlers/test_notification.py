"""Every customer is told once how the order ended."""

from uuid import uuid4

import pytest

from bus import Event
from bus.testing import Tester, context
from events.inventory import StockRejected
from events.payment import PaymentRefunded, PaymentRefused
from events.shipping import ShipmentSent
from handlers.notification import Mail, Mailbox, notification, tell_shipped


ORDER = uuid4()
SENT = ShipmentSent(order_id=ORDER, customer_id="ada", tracking="TG-1")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (SENT, "Your order is on its way: TG-1."),
        (
            StockRejected(order_id=ORDER, customer_id="ada", missing=("cup", "tea")),
            "Your order failed: we ran out of cup, tea.",
        ),
        (
            PaymentRefused(order_id=ORDER, customer_id="ada", reason="the card has expired"),
            "Your order failed: the card has expired.",
        ),
        (
            PaymentRefunded(order_id=ORDER, customer_id="ada", amount=3900),
            "Your order failed: it cannot be delivered, and you have 39.00 back.",
        ),
    ],
)
async def test_the_customer_is_told(event: Event, text: str) -> None:
    mailbox = Mailbox()
    async with Tester(notification, resources={Mailbox: mailbox}) as bus:
        await bus.publish(event)
        await bus.settled()
    assert list(mailbox.sent.values()) == [Mail("ada", ORDER, text)]


async def test_a_message_that_comes_again_is_not_told_again() -> None:
    mailbox, once = Mailbox(), context()
    await tell_shipped(SENT, once, mailbox)
    await tell_shipped(SENT, once, mailbox)
    assert len(mailbox.sent) == 1


async def test_a_customer_without_an_address_is_a_dead_letter_at_once() -> None:
    async with Tester(notification, resources={Mailbox: Mailbox(unreachable={"ada"})}) as bus:
        await bus.publish(SENT)
        await bus.settled()
        [letter] = bus.dead_letters()
        assert (letter.failure.reason, letter.failure.attempts) == ("rejected", 1)
