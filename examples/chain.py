"""Events cause events: what a handler returns is published with its ack, and says where it came from.

It prints:
    order.placed  caused by nothing
    invoice.issued  caused by order-1, in the story of order-1
"""

import asyncio

from bus import Event, Message, Service
from bus.testing import Tester


class OrderPlaced(Event, type="order.placed"):
    amount: int


class InvoiceIssued(Event, type="invoice.issued"):
    amount: int


invoicing = Service("invoicing")
audit = Service("audit")


@invoicing.on(OrderPlaced)
async def issue_invoice(order: OrderPlaced) -> InvoiceIssued:
    return InvoiceIssued(amount=order.amount)


@audit.on("order.*", "invoice.#")
async def write_down(message: Message) -> None:
    cause = message.causation_id
    print(f"{message.type}  caused by", f"{cause}, in the story of {message.correlation_id}" if cause else "nothing")


async def main() -> None:
    async with Tester(invoicing, audit) as bus:
        await bus.publish(OrderPlaced(amount=10), id="order-1")
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
