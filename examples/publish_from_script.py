"""A script publishes with `connect()`; when `publish` returns, the broker has stored the events safely.

    BUS_URL=amqp://guest:guest@localhost/ python examples/publish_from_script.py

It prints:
    stored order-1 and order-2
    nobody wants a price.changed
"""

import asyncio
from datetime import UTC, datetime, timedelta

from bus import Event, Unroutable, connect


class OrderPlaced(Event, type="order.placed"):
    amount: int


class PriceChanged(Event, type="price.changed"):
    amount: int


async def main() -> None:
    async with connect() as bus:  # of BUS_URL; without one it raises: an event never vanishes silently
        first = await bus.publish(OrderPlaced(amount=10), id="order-1")
        # publishing again with the same id is safe, as after a time-out that may have stored it
        second = await bus.publish(OrderPlaced(amount=20), id="order-2", headers={"tenant": "blue"})
        print("stored", *first, "and", *second)

        await bus.publish(OrderPlaced(amount=30), at=datetime.now(UTC) + timedelta(hours=24))
        try:
            await bus.publish(PriceChanged(amount=5), required=True)
        except Unroutable:
            print("nobody wants a price.changed")


if __name__ == "__main__":
    asyncio.run(main())
