"""Middleware wraps the processing of a handler's deliveries: a plain function, called once per handler.

A service takes `middleware=[…]` for its own handlers, an `App` for all.

It prints:
    guestbook.sign is built
    sign came to Ack, attempt 1
    sign came to DeadLetter, attempt 1
"""

import asyncio

from bus import Delivery, Event, Handler, Outcome, Process, Reject, Service
from bus.testing import Tester


class NoteLeft(Event, type="note.left"):
    text: str


def reporting(handler: Handler, process: Process) -> Process:
    """Tell what each delivery came to. An outcome is a value, so middleware can look at it, or return another."""
    print(handler.subscription_name, "is built")

    async def report(delivery: Delivery) -> Outcome:
        outcome = await process(delivery)
        print(f"{handler.name} came to {type(outcome).__name__}, attempt {delivery.attempt}")
        return outcome

    return report


guestbook = Service("guestbook", middleware=[reporting])


@guestbook.on(NoteLeft)
async def sign(note: NoteLeft) -> None:
    if not note.text:
        raise Reject("there is nothing to write down")


async def main() -> None:
    async with Tester(guestbook) as bus:
        await bus.publish(NoteLeft(text="I was here"), NoteLeft(text=""))
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
