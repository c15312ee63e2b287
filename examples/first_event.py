"""A first event: somebody publishes it, and a service reacts.

The services of an example run on the in-memory bus, in virtual time; on RabbitMQ they are the same.

It prints:
    Hello, Ada!
"""

import asyncio

from bus import Event, Service
from bus.testing import Tester


class VisitorCame(Event, type="visitor.came"):
    name: str


greeter = Service("greeter")


@greeter.on(VisitorCame)
async def greet(visitor: VisitorCame) -> None:
    print(f"Hello, {visitor.name}!")


async def main() -> None:
    async with Tester(greeter) as bus:
        await bus.publish(VisitorCame(name="Ada"))
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
