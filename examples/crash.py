"""A message is acked after its handler returned. When a worker dies before, the message comes again: nothing is lost.

What the repeated run publishes has the same ids, so whoever got it already can tell.

It prints:
    counting 3 boxes
    the worker is gone
    counting 3 boxes
    counted: 3
"""

import asyncio
from collections.abc import AsyncIterator

from bus import Event, Service
from bus.testing import Tester


class BoxesArrived(Event, type="boxes.arrived"):
    boxes: int


class BoxesCounted(Event, type="boxes.counted"):
    boxes: int


class Scales:
    """They show when somebody uses them."""

    def __init__(self) -> None:
        self.used = asyncio.Event()


inventory = Service("inventory")


@inventory.resource
async def scales() -> AsyncIterator[Scales]:
    yield Scales()


@inventory.on(BoxesArrived)
async def count(arrived: BoxesArrived, scales: Scales) -> BoxesCounted:
    print(f"counting {arrived.boxes} boxes")
    scales.used.set()
    await asyncio.sleep(30)
    return BoxesCounted(boxes=arrived.boxes)


async def main() -> None:
    scales = Scales()
    async with Tester(inventory, resources={Scales: scales}) as bus:
        await bus.publish(BoxesArrived(boxes=3))
        await scales.used.wait()
        await bus.crash()
        print("the worker is gone")
        await bus.settled()
        [counted] = bus.published(BoxesCounted)
        print("counted:", counted.boxes)


if __name__ == "__main__":
    asyncio.run(main())
