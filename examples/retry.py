"""A handler that raises is tried again by its policy. The waiting is the broker's, so it survives a crash.

On the in-memory bus the hours pass in a millisecond.

It prints:
    attempt 1 after 0 h: no answer
    attempt 2 after 1 h: no answer
    attempt 3 after 3 h: paid
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from bus import Context, Event, Service, exponential
from bus.testing import Tester


class InvoiceIssued(Event, type="invoice.issued"):
    amount: int


class Bank:
    """It answers when it is asked for the third time."""

    def __init__(self) -> None:
        self._opened = asyncio.get_running_loop().time()

    def pay(self, attempt: int) -> None:
        answer = "paid" if attempt == 3 else "no answer"
        hours = (asyncio.get_running_loop().time() - self._opened) / 3600
        print(f"attempt {attempt} after {hours:.0f} h: {answer}")
        if answer == "no answer":
            raise ConnectionError(answer)


payment = Service("payment")
patient = exponential(attempts=6, first=timedelta(hours=1), factor=2, limit=timedelta(days=1), jitter=False)


@payment.resource
async def bank() -> AsyncIterator[Bank]:
    yield Bank()


@payment.on(InvoiceIssued, retry=patient.retry_on(ConnectionError))
async def pay(invoice: InvoiceIssued, bank: Bank, context: Context) -> None:
    bank.pay(context.attempt)


async def main() -> None:
    async with Tester(payment) as bus:
        await bus.publish(InvoiceIssued(amount=10))
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
