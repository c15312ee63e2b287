"""Resources are found by the type that they yield. One per delivery sees the handler's error, so a session rolls back.

It prints:
    transfer of 30: committed, ada has 70
    transfer of 90: rolled back, ada has 70
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

from bus import Event, Reject, Service
from bus.testing import Tester


class TransferAsked(Event, type="transfer.asked"):
    amount: int


class Session:
    """One transaction of the database."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def withdraw(self, amount: int) -> int:
        self._database.execute("UPDATE account SET balance = balance - ?", [amount])
        return self.balance()

    def balance(self) -> int:
        [balance] = self._database.execute("SELECT balance FROM account").fetchone()
        return int(balance)


bank = Service("bank", concurrency=1)


@bank.resource
async def database() -> AsyncIterator[sqlite3.Connection]:
    """Open the database once for the worker, before the first delivery; close it after the last."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("CREATE TABLE account (balance INTEGER); INSERT INTO account VALUES (100);")
        yield connection


@bank.resource(per="delivery")
async def session(database: sqlite3.Connection) -> AsyncIterator[Session]:
    """Commit what the handler did, or roll it back where it raised."""
    session = Session(database)
    try:
        yield session
    except BaseException:  # a shutdown's cancellation too
        database.rollback()
        print(f"rolled back, ada has {session.balance()}")
        raise
    database.commit()
    print(f"committed, ada has {session.balance()}")


@bank.on(TransferAsked)
async def transfer(asked: TransferAsked, session: Session) -> None:
    print(f"transfer of {asked.amount}: ", end="")
    if session.withdraw(asked.amount) < 0:
        raise Reject("not enough money")


async def main() -> None:
    async with Tester(bank) as bus:
        await bus.publish(TransferAsked(amount=30))
        await bus.publish(TransferAsked(amount=90))
        await bus.settled()


if __name__ == "__main__":
    asyncio.run(main())
