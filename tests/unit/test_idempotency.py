"""Handlers with `idempotent=True`: what runs, what is refused when it is built, and effects once through any faults."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bus import (
    Ack,
    Completion,
    ConfigurationError,
    Context,
    Handler,
    Message,
    Outcome,
    Process,
    Reject,
    Retry,
    Service,
    SqliteStore,
    SqliteTransaction,
    Store,
    fixed,
)
from bus.errors import DeliveryLost
from bus.idempotency import NotCompleted
from bus.outcome import Release
from bus.testing import SimulationFailed, Tester, simulate

from .played import Placed, Played, Shipped, process
from .store.in_memory import DictStore, DictTransaction


SCHEMA = "CREATE TABLE IF NOT EXISTS refunds (number INTEGER)"
COUNT = "SELECT number FROM refunds ORDER BY rowid"


def refunds(store: SqliteStore) -> list[int]:
    with sqlite3.connect(store.path) as connection:
        return [number for (number,) in connection.execute(COUNT)]


def refunding(store: Store | None, **options: object) -> Service:
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True, **options)  # type: ignore[arg-type]
    async def refund(placed: Placed, transaction: SqliteTransaction) -> Shipped:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        return Shipped(number=placed.number)

    return service


@pytest.fixture(params=["file", ":memory:"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "a.db" if request.param == "file" else request.param, schema=SCHEMA)


@pytest.mark.parametrize("options", [{}, {"ordered_by": "number"}], ids=["unordered", "ordered"])
async def test_a_duplicate_is_acked_counted_and_publishes_nothing(
    store: SqliteStore, options: dict[str, object]
) -> None:
    async with Tester(refunding(store, **options)) as bus:
        for id in ("a", "a", "b"):
            await bus.publish(Placed(number=1), id=id)
            await bus.settled()
        assert len(bus.published(Shipped)) == 2
        assert bus.worker.flows["billing.refund"].counts == {"completed before": 1}
    assert refunds(store) == [1, 1]


async def test_an_ordered_handler_that_fails_in_place_writes_once(store: SqliteStore) -> None:
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True, ordered_by="number", retry=fixed(3, 1))
    async def refund(placed: Placed, context: Context, transaction: SqliteTransaction) -> None:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        if context.attempt < 3:
            raise ConnectionError("not yet")

    async with Tester(service) as bus:
        await bus.publish(*(Placed(number=number) for number in (1, 2)))
        await bus.settled()
    assert sorted(refunds(store)) == [1, 2]


async def test_a_plain_function_is_idempotent_too(store: SqliteStore) -> None:
    service, ran = Service("billing", store=store), []

    @service.on("order.#", idempotent=True)
    def note(message: Message) -> None:
        ran.append(message.id)

    async with Tester(service) as bus:
        for id in ("a", "a", "b"):
            await bus.publish(Placed(), id=id)
            await bus.settled()
    assert ran == ["a", "b"]


async def test_after_keep_a_duplicate_runs_again() -> None:
    store = SqliteStore(":memory:", keep=60, schema=SCHEMA)
    async with Tester(refunding(store)) as bus:
        for wait in (59, 2, 59):
            await bus.publish(Placed(number=wait), id="a")
            await bus.settled()
            await bus.advance(wait)
    assert refunds(store) == [59, 59]


async def test_a_dead_letter_never_completed_so_its_replay_runs_and_another_replay_does_not() -> None:
    store = SqliteStore(":memory:", schema=SCHEMA)
    service, broken = Service("billing", store=store), [True]

    @service.on(Placed, idempotent=True, retry=fixed(1, 1))
    async def refund(placed: Placed, transaction: SqliteTransaction) -> None:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        if broken:
            raise ConnectionError(broken.pop())

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1), id="a")
        await bus.settled()
        assert refunds(store) == []
        (letter,) = bus.dead_letters()
        await bus.transport.dead_letters.replay(letter)
        await bus.settled()
        assert refunds(store) == [1]
        await bus.publish(Placed(number=1), id="a", to="billing.refund")
        await bus.settled()
    assert refunds(store) == [1]


async def test_a_handler_that_calls_commit_has_failed_with_what_to_do_and_loses_nothing(store: SqliteStore) -> None:
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True, retry=fixed(2, 1))
    async def refund(placed: Placed, context: Context, transaction: SqliteTransaction) -> Shipped:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        await transaction.commit()  # type: ignore[attr-defined]
        return Shipped(number=placed.number)

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        (letter,) = bus.dead_letters()
    assert (letter.failure.attempts, letter.failure.error_type) == (2, "AttributeError")
    assert "no commit, only execute(); Tidegate commits it once the handler has returned" in letter.failure.error
    assert refunds(store) == []


async def ends(transaction: SqliteTransaction | DictTransaction) -> None:
    """Commit as a handler can."""
    if isinstance(transaction, DictTransaction):
        await transaction.write("1")
        await transaction.commit()
    else:
        await transaction.execute("INSERT INTO refunds VALUES (1)")
        await transaction.execute("COMMIT")


@pytest.mark.parametrize("store", [SqliteStore(":memory:", schema=SCHEMA), DictStore()], ids=["SQLite", "another"])
async def test_a_handler_that_commits_by_itself_and_fails_then_is_run_again(store: Store) -> None:
    service = Service("billing", store=store)

    async def refund(placed: Placed, context: Context, transaction: Any) -> Shipped:
        if context.attempt == 1:
            await ends(transaction)
            raise ConnectionError("the second half failed")
        return Shipped(number=placed.number)

    refund.__annotations__["transaction"] = store.transaction_type
    service.on(Placed, idempotent=True, retry=fixed(2, 1))(refund)
    async with Tester(service) as bus:
        await bus.publish(Placed(number=1), id="a")
        await bus.settled()
        assert bus.published(Shipped) == [Shipped(number=1)]
        await bus.publish(Placed(number=1), id="a")
        await bus.settled()
        assert bus.published(Shipped) == [Shipped(number=1)]


class Lossy(Played):
    """Completes what is acked, unless it loses its connection where the commit would be."""

    async def settle(self, outcome: Outcome) -> None:
        await super().settle(outcome)
        if isinstance(outcome, Ack) and outcome.complete is not None:
            await outcome.complete()


async def test_a_delivery_that_is_lost_before_the_commit_is_run_again_when_it_comes_again(store: SqliteStore) -> None:
    service = refunding(store)
    async with store.opened() as opened:
        run = process(service, store=opened, transaction_type=SqliteTransaction)
        lost, again, late = Lossy(b'{"number": 1}'), Lossy(b'{"number": 1}', redelivered=1), Lossy(redelivered=2)
        lost.refuse = [DeliveryLost("gone")]
        assert isinstance(await run(lost), Release)
        assert refunds(store) == []
        assert await run(again) == Ack(again.settled[0].publish)  # type: ignore[union-attr]
        assert await run(late) == Ack(ran=False)
    assert refunds(store) == [1]


class Gone(Played):
    """A delivery that was lost while it ran: all but its ack is carried out, where that is committed too."""

    lost = True

    async def settle(self, outcome: Outcome) -> None:
        await super().settle(outcome)
        if isinstance(outcome, Ack) and outcome.complete is not None:
            await outcome.complete()
        raise DeliveryLost("gone")


@pytest.mark.parametrize("returns", [True, False], ids=["events", "nothing"])
async def test_l2_a_run_that_wrote_and_lost_its_connection_is_committed_and_only_its_ack_is_left(
    store: SqliteStore, returns: bool
) -> None:
    service, runs = Service("billing", store=store), list[int]()

    @service.on(Placed, idempotent=True)
    async def refund(placed: Placed, transaction: SqliteTransaction) -> Shipped | None:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        runs.append(placed.number)
        return Shipped(number=placed.number) if returns else None

    async with store.opened() as opened:
        run, other = (process(service, store=opened, transaction_type=SqliteTransaction) for _ in range(2))
        lost = Gone(b'{"number": 1}')
        assert isinstance(await run(lost), Release)
        assert refunds(store) == [1]
        assert len(lost.settled[0].publish) == returns  # type: ignore[union-attr]
        assert await run(Lossy(b'{"number": 1}', redelivered=1)) == Ack()
        # a replica that got it meanwhile
        assert await other(Lossy(b'{"number": 1}', redelivered=1)) == Ack(ran=False)
    assert (runs, refunds(store)) == ([1], [1])


async def test_d6_a_run_that_lost_its_connection_and_is_not_committed_has_failed(store: SqliteStore) -> None:
    async with store.opened() as opened:
        run = process(refunding(store), store=opened, transaction_type=SqliteTransaction)
        with sqlite3.connect(store.path) as connection:
            connection.execute(
                "CREATE TRIGGER refuses BEFORE INSERT ON tidegate_completions BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        lost, again = Gone(b'{"number": 1}'), Lossy(b'{"number": 1}', redelivered=1)
        assert isinstance(await run(lost), Release)
        assert isinstance(await run(again), Retry)
        assert [type(outcome) for outcome in lost.settled] == [Ack, Retry]
    assert (again.settled, refunds(store)) == (lost.settled[1:], [])


async def test_d6_what_has_no_id_is_not_committed_after_its_connection_is_lost_as_it_runs_again(
    store: SqliteStore,
) -> None:
    async with store.opened() as opened:
        run = process(refunding(store), store=opened, transaction_type=SqliteTransaction)
        lost = Gone(b'{"number": 1}', id_made_up=True)
        assert isinstance(await run(lost), Release)
        assert (lost.settled, refunds(store)) == ([], [])
        await run(Lossy(b'{"number": 1}', redelivered=1, id_made_up=True))
    assert refunds(store) == [1]


async def test_what_wrote_nothing_publishes_nothing_until_its_message_comes_again(store: SqliteStore) -> None:
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True)
    async def ship(placed: Placed) -> Shipped:
        return Shipped(number=placed.number)

    async with store.opened() as opened:
        run = process(service, store=opened, transaction_type=SqliteTransaction)
        lost, again = Gone(), Lossy(redelivered=1)
        assert isinstance(await run(lost), Release)
        assert lost.settled == []
        assert isinstance(outcome := await run(again), Ack)
    assert len(outcome.publish) == 1


@pytest.mark.parametrize("fails", ["the handler", "the commit"])
async def test_d6_a_run_that_failed_is_not_repeated_when_its_message_comes_again(
    store: SqliteStore, fails: str
) -> None:
    service, runs = Service("billing", store=store), list[int]()

    @service.on(Placed, idempotent=True)
    async def refund(placed: Placed, transaction: SqliteTransaction) -> None:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        runs.append(placed.number)
        if fails == "the handler":
            raise Reject("no")

    gone = DeliveryLost("its copy was stored, and its channel went")
    async with store.opened() as opened:
        run = process(service, store=opened, transaction_type=SqliteTransaction)
        lost, again = Lossy(b'{"number": 1}'), Lossy(b'{"number": 1}', redelivered=1)
        lost.refuse = [gone] if fails == "the handler" else [NotCompleted("no"), gone]
        assert isinstance(await run(lost), Release)
        await run(again)
    assert (again.settled, runs, refunds(store)) == (lost.settled[-1:], [1], [])


async def test_a_delivery_whose_ack_is_cancelled_before_the_commit_is_run_again_when_it_comes_again(
    store: SqliteStore,
) -> None:
    class Unconfirmed(Played):
        async def settle(self, outcome: Outcome) -> None:
            await asyncio.Event().wait()

    async with store.opened() as opened:
        run = process(refunding(store), store=opened, transaction_type=SqliteTransaction)
        settling = asyncio.ensure_future(run(Unconfirmed(b'{"number": 1}')))
        await asyncio.sleep(0.1)
        settling.cancel()
        await asyncio.wait([settling])
        assert refunds(store) == []
        await run(Lossy(b'{"number": 1}', redelivered=1))
    assert refunds(store) == [1]


async def test_a_middleware_that_makes_a_failure_of_a_success_undoes_what_was_written(store: SqliteStore) -> None:
    failing = [ConnectionError("the middleware's own"), ConnectionError("and again")]

    def fails(_: Handler, process: Process) -> Process:
        async def failed(delivery: object) -> Outcome:
            outcome = await process(delivery)  # type: ignore[arg-type]
            if failing:
                raise failing.pop()
            return outcome

        return failed  # type: ignore[return-value]

    async with Tester(refunding(store), middleware=[fails]) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert bus.published(Shipped) == [Shipped(number=1)]
    assert refunds(store) == [1]


async def test_a_handler_that_runs_past_its_timeout_leaves_no_lock() -> None:
    store = SqliteStore(":memory:", schema=SCHEMA)
    service = Service("billing", store=store)

    @service.on(Placed, idempotent=True, timeout=10, retry=fixed(2, 1))
    async def refund(placed: Placed, context: Context, transaction: SqliteTransaction) -> None:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        if context.attempt == 1 and placed.number == 1:
            await asyncio.sleep(3600)

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1), Placed(number=2))
        await bus.settled()
        assert bus.dead_letters() == []
    assert sorted(refunds(store)) == [1, 2]


async def test_a_store_that_does_not_commit_fails_the_run_under_the_policy() -> None:
    store = SqliteStore(":memory:", schema=SCHEMA)
    async with Tester(refunding(store, retry=fixed(2, 1))) as bus:
        with sqlite3.connect(store.path) as connection:
            connection.execute(
                "CREATE TRIGGER refuses BEFORE INSERT ON tidegate_completions BEGIN SELECT RAISE(ABORT, 'no room'); END"
            )
        await bus.publish(Placed(number=1))
        await bus.settled()
        (letter,) = bus.dead_letters()
        assert (letter.failure.attempts, "no room" in letter.failure.error) == (2, True)
    assert refunds(store) == []


class Mails(list[int]):
    """What cannot be undone."""


def build() -> Tester:
    service = Service("billing")

    @service.on(Placed, idempotent=True, retry=fixed(10, 1))
    async def refund(placed: Placed, context: Context, transaction: SqliteTransaction) -> Shipped:
        await transaction.execute("INSERT INTO refunds VALUES (?)", [placed.number])
        if placed.number == 2 and context.attempt == 1:
            raise ConnectionError("once")
        await asyncio.sleep(0.01)
        return Shipped(number=placed.number)

    @service.on(Shipped, idempotent=True, retry=fixed(10, 1))
    async def tell(shipped: Shipped, mails: Mails) -> None:
        mails.append(shipped.number)

    return Tester(service, resources={Store: SqliteStore(":memory:", schema=SCHEMA), Mails: Mails()})


async def three(bus: Tester) -> None:
    await bus.publish(*(Placed(number=number) for number in range(3)))
    await bus.settled(within=30)
    assert sorted(refunds(bus.resources[Store])) == [0, 1, 2]
    assert set(bus.resources[Mails]) == {0, 1, 2}


async def no_mail_twice(bus: Tester) -> None:
    await three(bus)
    assert len(bus.resources[Mails]) == 3


def test_through_crashes_and_duplicates_effects_in_the_transaction_happen_once() -> None:
    simulate(build, three, seeds=range(40))


def test_what_is_not_in_the_transaction_may_happen_twice_and_the_simulator_shows_it() -> None:
    with pytest.raises(SimulationFailed, match=r"crash|lost|outage"):
        simulate(build, no_mail_twice, seeds=range(200))


def test_without_a_store_it_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r'refund.*idempotent=True needs a store: Service\("billing", store='):
        Tester(refunding(None))
    Tester(refunding(None), resources={Store: SqliteStore(":memory:")})


def test_a_transaction_is_refused_where_there_is_none() -> None:
    service = Service("billing", store=SqliteStore(":memory:"))

    @service.on(Placed)
    async def forgot(placed: Placed, transaction: SqliteTransaction) -> None: ...

    @service.on(Placed, idempotent=True)
    def plain(placed: Placed, transaction: SqliteTransaction) -> None: ...

    with pytest.raises(ConfigurationError) as refused:
        Tester(service)
    first, second = str(refused.value).splitlines()[-2:]
    assert "only a handler with idempotent=True has a transaction" in first
    assert "a plain function cannot await its transaction: make it `async def`" in second


@pytest.mark.parametrize(
    ("key", "store", "told"),
    [
        (SqliteTransaction, None, r'it is its store\'s: Service\("billing", store=.*idempotent=True'),
        (Completion, SqliteStore(":memory:"), "the transactions of its store .* are SqliteTransaction"),
        (Completion, None, "it is Tidegate's; ask for the transaction of its store, such as SqliteTransaction"),
    ],
)
def test_a_transaction_that_no_store_gives_is_refused_with_where_it_comes_from(
    key: type[object], store: Store | None, told: str
) -> None:
    service = Service("billing", store=store)

    async def refund(placed: Placed, transaction: Completion) -> None: ...

    refund.__annotations__["transaction"] = key
    service.on(Placed)(refund)
    with pytest.raises(ConfigurationError, match=f"for 'transaction'; {told}"):
        Tester(service)


async def test_without_idempotent_nothing_is_asked_of_the_store(store: SqliteStore) -> None:
    service, ran = Service("billing", store=store), []

    @service.on(Placed)
    async def note(placed: Placed) -> None:
        ran.append(placed.number)

    async with Tester(service) as bus:
        for _ in range(2):
            await bus.publish(Placed(number=1), id="a")
            await bus.settled()
    assert ran == [1, 1]
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT count(*) FROM tidegate_completions").fetchall() == [(0,)]


async def test_of_two_at_once_one_writes_and_the_other_is_no_failure(store: SqliteStore) -> None:
    outcomes: list[Outcome] = []
    service = refunding(store)

    def noting(_: Handler, process: Process) -> Process:
        async def noted(delivery: object) -> Outcome:
            outcomes.append(outcome := await process(delivery))  # type: ignore[arg-type]
            return outcome

        return noted  # type: ignore[return-value]

    async with Tester(service, middleware=[noting]) as bus:
        await bus.publish(Placed(number=1), id="a")
        await bus.publish(Placed(number=1), id="a")
        await bus.settled()
    assert refunds(store) == [1]
    assert not [outcome for outcome in outcomes if isinstance(outcome, Retry)]
