"""An event can be published now and delivered later: after a delay, or at a point in time.

It prints:
    after 23 h: nothing
    after 24 h: payment reminder for order 7
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from bus import Event, Service
from bus.testing import Tester


class PaymentOverdue(Event, type="payment.overdue"):
    order: int


class Reminders(list[str]):
    """What was sent to customers."""


reminding = Service("reminding")


@reminding.resource
async def reminders() -> AsyncIterator[Reminders]:
    yield Reminders()


@reminding.on(PaymentOverdue)
async def remind(overdue: PaymentOverdue, reminders: Reminders) -> None:
    reminders.append(f"payment reminder for order {overdue.order}")


async def main() -> None:
    sent = Reminders()
    async with Tester(reminding, resources={Reminders: sent}) as bus:
        await bus.publish(PaymentOverdue(order=7), delay=timedelta(hours=24))
        await bus.advance(timedelta(hours=23))
        print("after 23 h:", *sent or ["nothing"])
        await bus.advance(timedelta(hours=1))
        print("after 24 h:", *sent or ["nothing"])


if __name__ == "__main__":
    asyncio.run(main())
