"""How a service is tested: `pytest examples/test_a_service.py`. No broker, no waiting, no mocks of one."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bus import Context, Event, Service, fixed
from bus.testing import Tester, context


class InvoiceIssued(Event, type="invoice.issued"):
    amount: int


class InvoicePaid(Event, type="invoice.paid"):
    amount: int


class Bank:
    """The real one would speak to a bank."""

    async def pay(self, amount: int) -> None:
        raise ConnectionError("no bank here")


payment = Service("payment")


@payment.resource
async def bank() -> AsyncIterator[Bank]:
    yield Bank()


@payment.on(InvoiceIssued, retry=fixed(attempts=4, delay=timedelta(hours=6)))
async def pay(invoice: InvoiceIssued, context: Context, bank: Bank) -> InvoicePaid:
    await bank.pay(invoice.amount)
    if context.attempt > 1:
        context.publish(InvoicePaid(amount=1))  # the bank charges for late payment
    return InvoicePaid(amount=invoice.amount)


class FakeBank(Bank):
    """It is closed for the first calls."""

    def __init__(self, closed: int = 0) -> None:
        self.closed = closed

    async def pay(self, amount: int) -> None:
        if self.closed:
            self.closed -= 1
            raise ConnectionError("closed")


async def test_on_the_bus_with_a_fake_bank() -> None:
    async with Tester(payment, resources={Bank: FakeBank()}) as bus:
        await bus.publish(InvoiceIssued(amount=10))
        await bus.settled()
        assert bus.published(InvoicePaid) == [InvoicePaid(amount=10)]
        assert bus.dead_letters() == []


@pytest.mark.bus(payment, resources={Bank: FakeBank(closed=99)})
async def test_a_day_of_retries_ends_in_a_dead_letter(bus: Tester) -> None:
    await bus.publish(InvoiceIssued(amount=10))
    await bus.settled()
    [letter] = bus.dead_letters()
    assert (letter.failure.reason, letter.failure.attempts) == ("exhausted", 4)
    assert bus.published(InvoicePaid) == []


async def test_calling_the_handler_alone() -> None:
    second = context(attempt=2)
    assert await pay(InvoiceIssued(amount=10), second, FakeBank()) == InvoicePaid(amount=10)
    assert second.published == [InvoicePaid(amount=1)]
