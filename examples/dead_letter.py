"""What a handler gives up on is kept with the reason, and can be replayed to that handler once the cause is mended.

A worker's operator does the same with `python app.py dead list` and `python app.py dead replay`.

It prints:
    newsletter.welcome gave up on user.joined (rejected): ada has no mail address
    welcomed ada@example.org
    0 letters left
"""

import asyncio
from collections.abc import AsyncIterator

from bus import Event, Reject, Service
from bus.testing import Tester


class UserJoined(Event, type="user.joined"):
    name: str


class AddressBook(dict[str, str]):
    """Mail addresses by name."""


newsletter = Service("newsletter")


@newsletter.resource
async def addresses() -> AsyncIterator[AddressBook]:
    yield AddressBook()


@newsletter.on(UserJoined)
async def welcome(user: UserJoined, addresses: AddressBook) -> None:
    if user.name not in addresses:
        raise Reject(f"{user.name} has no mail address")  # no retry would help
    print(f"welcomed {addresses[user.name]}")


async def main() -> None:
    addresses = AddressBook()
    async with Tester(newsletter, resources={AddressBook: addresses}) as bus:
        await bus.publish(UserJoined(name="ada"))
        await bus.settled()
        [letter] = bus.dead_letters()
        failure = letter.failure
        print(f"{letter.service}.{letter.handler} gave up on {letter.message.type} ({failure.reason}): {failure.error}")

        addresses["ada"] = "ada@example.org"
        await bus.transport.dead_letters.replay(letter)
        await bus.settled()
        print(len(bus.dead_letters()), "letters left")


if __name__ == "__main__":
    asyncio.run(main())
