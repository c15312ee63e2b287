"""A store that raises, wherever it can: the run has failed, and nobody but its message waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bus import Event, Service, fixed
from bus.errors import DeliveryLost
from bus.testing import Tester
from tests.unit.played import Played, process

from .in_memory import DictCompletion, DictStore, DictTransaction


CALLS = ["completed", "completion", "transaction", "used", "commit", "rollback"]


class Placed(Event, type="order.placed"):
    number: int


class SickCompletion:
    """A completion of a store that is sick in one of its calls."""

    def __init__(self, store: SickStore, of: DictCompletion) -> None:
        self._store = store
        self._of = of

    @property
    def transaction(self) -> DictTransaction:
        self._store.check("transaction")
        return self._of.transaction

    @property
    def used(self) -> bool:
        self._store.check("used")
        return self._of.used

    async def commit(self) -> None:
        self._store.check("commit")
        await self._of.commit()

    async def rollback(self) -> None:
        self._store.check("rollback")
        await self._of.rollback()


class SickStore:
    """A store that raises in one of its calls, for as long as it is sick."""

    transaction_type = DictTransaction

    def __init__(self, sick: str) -> None:
        self.store = DictStore()
        self.sick: str | None = sick
        self.raised: list[str] = []

    def check(self, call: str) -> None:
        if call == self.sick:
            self.raised.append(call)
            raise ConnectionResetError(f"the database is gone: {call}")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[SickStore]:
        async with self.store.opened():
            yield self

    async def completed(self, key: str) -> bool:
        self.check("completed")
        return await self.store.completed(key)

    def completion(self, key: str | None) -> SickCompletion:
        self.check("completion")
        return SickCompletion(self, self.store.completion(key))


@pytest.mark.parametrize("options", [{}, {"ordered_by": "number"}], ids=["unordered", "ordered"])
@pytest.mark.parametrize("ends", ["succeeds", "fails"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_store_that_raises_fails_one_run_and_the_message_is_done_once_when_it_is_well(
    call: str, ends: str, options: dict[str, Any]
) -> None:
    store, seen = SickStore(call), list[int]()
    sick, healthy = Service("sick", store=store), Service("healthy")

    @sick.on(Placed, idempotent=True, retry=fixed(9, 60), **options)
    async def work(placed: Placed, transaction: DictTransaction) -> None:
        await transaction.write(str(placed.number))
        if store.sick and ends == "fails":
            raise ConnectionResetError("the database is gone")

    @healthy.on(Placed)
    async def other(placed: Placed) -> None:
        seen.append(placed.number)

    async with Tester(sick, healthy) as bus:
        await bus.publish(Placed(number=1))
        await bus.advance(90)
        await bus.publish(Placed(number=2))
        await bus.advance(1)
        assert sorted(seen) == [1, 2]
        store.sick = None
        await bus.advance(600)
        assert sorted(store.store.effects) == ["1", "2"]
        assert bus.dead_letters() == []
    # where nothing is undone or lost, nothing need raise
    assert store.raised or (call, ends) == ("commit", "fails") or call == "used"


async def test_where_it_is_not_known_whether_a_lost_run_wrote_its_message_is_run_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, runs = SickStore("used"), list[int]()
    service = Service("sick", store=store)

    @service.on(Placed, idempotent=True)
    async def work(placed: Placed, transaction: DictTransaction) -> None:
        runs.append(placed.number)

    run = process(service, store=store, transaction_type=DictTransaction)
    lost = Played(b'{"number": 1}')
    lost.refuse = [DeliveryLost("its channel is gone")]
    await run(lost)
    await run(Played(b'{"number": 1}', redelivered=1))
    assert runs == [1, 1]
    assert "not known whether it wrote" in caplog.text


async def test_where_the_rollback_raises_too_the_handlers_own_failure_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service("sick", store=SickStore("rollback"))

    @service.on(Placed, idempotent=True, retry=fixed(1, 0))
    async def work(placed: Placed, transaction: DictTransaction) -> None:
        await transaction.write("never")
        raise ValueError("no such order")

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        (letter,) = bus.dead_letters()
    assert (letter.failure.reason, letter.failure.error) == ("exhausted", "no such order")
    (told,) = [line for line in caplog.text.splitlines() if "not rolled back" in line]
    assert "service=sick handler=work" in told
    assert "the database is gone: rollback" in told
