"""A message that comes twice is refunded once: its completion is stored together with what the handler wrote.

It prints:
    refunding 4711
    the refund is written, and now the worker dies before its ack
    one refund: [('4711', 990)]
"""

import asyncio
import sqlite3

from bus import Event, Service, SqliteStore, SqliteTransaction
from bus.testing import Tester


class OrderCancelled(Event, type="order.cancelled"):
    order_id: str
    cents: int


# a file's name in place of :memory: is for all workers of a machine
store = SqliteStore(":memory:", schema="CREATE TABLE IF NOT EXISTS refunds (order_id TEXT, cents INTEGER)")
billing = Service("billing", store=store)


@billing.on(OrderCancelled, idempotent=True)
async def refund(order: OrderCancelled, transaction: SqliteTransaction) -> None:
    print("refunding", order.order_id)
    await transaction.execute("INSERT INTO refunds VALUES (?, ?)", [order.order_id, order.cents])


async def main() -> None:
    order = OrderCancelled(order_id="4711", cents=990)
    async with Tester(billing) as bus:
        await bus.publish(order, id="one message")
        await bus.settled()
        print("the refund is written, and now the worker dies before its ack")
        await bus.crash()
        await bus.publish(order, id="one message")  # as the broker hands it out again
        await bus.settled()
    with sqlite3.connect(store.path) as connection:
        print("one refund:", connection.execute("SELECT * FROM refunds").fetchall())


asyncio.run(main())
