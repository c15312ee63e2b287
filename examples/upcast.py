"""Events of old versions keep coming, from queues and dead letters: one function per step brings them up to date.

The step works on raw data. A field that is added with a default needs no new version at all.

It prints:
    Ada Lovelace (en)
    Grace Hopper (en)
"""

import asyncio
from typing import Any

from bus import Event, Service
from bus.testing import Tester


class UserJoinedFirst(Event, type="user.joined", version=1):
    """What publishers sent a year ago, and what a publisher that was not deployed since still sends."""

    name: str


class UserJoined(Event, type="user.joined", version=2):
    given_name: str
    family_name: str
    language: str = "en"


@UserJoined.upcast(1)
def split_name(data: dict[str, Any]) -> dict[str, Any]:
    given, _, family = data.pop("name").partition(" ")
    return {**data, "given_name": given, "family_name": family}


accounts = Service("accounts")


@accounts.on(UserJoined)
async def open_account(user: UserJoined) -> None:
    print(f"{user.given_name} {user.family_name} ({user.language})")


async def main() -> None:
    async with Tester(accounts) as bus:
        await bus.publish(UserJoinedFirst(name="Ada Lovelace"))
        await bus.publish(UserJoined(given_name="Grace", family_name="Hopper"))
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
