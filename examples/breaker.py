"""A breaker stops a handler whose warehouse is down, so that its messages wait in their queue and keep their attempts.

It prints:
    tried 1, 2, 3, then stopped: 97 wait
    after the cool-down one was tried, and failed: 96 wait
    the warehouse is back: 100 reserved, 0 given up
"""

import asyncio

from bus import Event, Service, breaker, fixed
from bus.testing import Tester


class OrderPlaced(Event, type="order.placed"):
    number: int


down = asyncio.Event()
tried: list[int] = []
reserved: set[int] = set()
inventory = Service("inventory", concurrency=1, middleware=[breaker(failures=3, within=60, cool_down=30)])


@inventory.on(OrderPlaced, retry=fixed(5, 3600))
async def reserve_stock(order: OrderPlaced) -> None:
    tried.append(order.number)
    if down.is_set():
        raise ConnectionError("the warehouse does not answer")
    reserved.add(order.number)


async def main() -> None:
    down.set()
    async with Tester(inventory) as bus:
        await bus.publish(*(OrderPlaced(number=number) for number in range(1, 101)))
        await bus.advance(20)
        print(f"tried {', '.join(map(str, tried))}, then stopped: {100 - len(tried)} wait")
        await bus.advance(20)
        print(f"after the cool-down one was tried, and failed: {100 - len(tried)} wait")
        down.clear()
        await bus.settled()
        print(f"the warehouse is back: {len(reserved)} reserved, {len(bus.dead_letters())} given up")


if __name__ == "__main__":
    asyncio.run(main())
