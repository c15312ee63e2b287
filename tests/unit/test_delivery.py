"""The life of one delivery, against a delivery that is played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import (
    Ack,
    Context,
    DeadLetter,
    Event,
    Fate,
    Handler,
    Message,
    Outcome,
    Process,
    Reject,
    Release,
    Retry,
    Service,
    Unroutable,
    fixed,
    immediate,
)
from bus.errors import DeliveryLost
from bus.message import Ids
from bus.runs import Runs
from bus.testing import context

from .played import Placed, Played, Shipped, Slots, handling, process


async def test_what_a_handler_returns_and_hands_to_its_context_goes_out_with_the_ack() -> None:
    async def work(placed: Placed, context: Context) -> list[Event]:
        context.publish(Shipped(number=1))
        return [Shipped(number=2), Shipped(number=3)]

    delivery = Played()
    await process(handling(work))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, Ack)
    assert [outgoing.message.body for outgoing in outcome.publish] == [
        b'{"number":1}',
        b'{"number":2}',
        b'{"number":3}',
    ]
    assert len({outgoing.message.id for outgoing in outcome.publish}) == 3


async def test_a_handler_that_fails_has_published_nothing() -> None:
    async def work(placed: Placed, context: Context) -> None:
        context.publish(Shipped())
        raise ValueError("after all")

    delivery = Played()
    await process(handling(work, retry=fixed(2, 7)))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, Retry)
    assert (outcome.delay, outcome.attempt) == (timedelta(seconds=7), 2)


@pytest.mark.parametrize(
    "returned",
    [7, "text", {"a": 1}, [Placed(), 7], object(), {Placed()}, frozenset({Placed()}), iter([Placed()])],
    ids=lambda value: type(value).__name__,
)
async def test_a_handler_that_returns_something_else_has_failed(returned: object) -> None:
    async def work(placed: Placed) -> Any:
        return returned

    delivery = Played()
    await process(handling(work, retry=immediate(1)))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, DeadLetter)
    assert "it may return events, or None" in outcome.failure.error


async def test_a_plain_function_runs_in_a_thread_with_its_context() -> None:
    def work(placed: Placed, context: Context, message: Message) -> Shipped:
        return Shipped(number=context.attempt + len(message.id))

    delivery = Played(attempt=4)
    await process(handling(work))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, Ack)
    assert outcome.publish[0].message.body == b'{"number":7}'


async def test_a_cancellation_from_outside_is_neither_success_nor_failure() -> None:
    async def work(placed: Placed) -> None:
        await asyncio.sleep(60)

    delivery, slots = Played(), Slots()
    task = asyncio.ensure_future(process(handling(work), slots=slots)(delivery))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert delivery.settled == []
    assert slots.given == 1


async def test_a_handler_that_is_slower_than_its_timeout_may_clean_up_and_has_failed() -> None:
    cleaned = []

    async def work(placed: Placed) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    delivery = Played()
    await process(handling(work, timeout=0.02, retry=immediate(1)))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, DeadLetter)
    assert outcome.failure.error == "the handler ran past its timeout of 0.02 s"
    assert cleaned == [True]


async def test_a_timeout_that_the_handler_raises_itself_is_its_own() -> None:
    async def work(placed: Placed) -> None:
        raise TimeoutError("the bank did not answer")

    delivery = Played()
    await process(handling(work, retry=immediate(1)))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, DeadLetter)
    assert outcome.failure.error == "the bank did not answer"


async def test_an_event_that_no_queue_wanted_is_a_failure_under_the_policy() -> None:
    async def work(placed: Placed, context: Context) -> None:
        context.publish(Shipped(), required=True)

    delivery = Played()
    delivery.refuse = [Unroutable("nobody", {"x": Fate.UNROUTABLE})]
    await process(handling(work, retry=fixed(2, 1)))(delivery)
    assert [type(outcome) for outcome in delivery.settled] == [Ack, Retry]


async def test_the_slot_is_free_before_the_broker_is_waited_for() -> None:
    slots = Slots()
    given_at_settling = []

    class Slow(Played):
        async def settle(self, outcome: Outcome) -> None:
            given_at_settling.append(slots.given)

    async def work(placed: Placed) -> None: ...

    await process(handling(work), slots=slots)(Slow())
    assert given_at_settling == [1]


async def test_middleware_wraps_from_the_outside_in_and_what_it_decides_is_settled() -> None:
    order: list[str] = []

    def named_middleware(name: str) -> Any:
        def wrap(handler: Handler, inner: Process) -> Process:
            async def run(delivery: Any) -> Outcome:
                order.append(f"{name} of {handler.name}")
                return await inner(delivery)

            return run

        return wrap

    def decide(handler: Handler, inner: Process) -> Process:
        async def run(delivery: Any) -> Outcome:
            return Ack()

        return run

    async def work(placed: Placed) -> None:
        raise AssertionError("it must not run")

    delivery = Played()
    await process(handling(work), named_middleware("outer"), named_middleware("inner"), decide)(delivery)
    assert order == ["outer of work", "inner of work"]
    assert delivery.settled == [Ack()]


async def test_a_middleware_that_raises_is_a_failure_of_the_delivery() -> None:
    def broken(handler: Handler, inner: Process) -> Process:
        async def run(delivery: Any) -> Outcome:
            raise KeyError("metrics")

        return run

    async def work(placed: Placed) -> None: ...

    delivery = Played()
    await process(handling(work, retry=fixed(3, 1)), broken)(delivery)
    assert [type(outcome) for outcome in delivery.settled] == [Retry]


async def test_a_resource_of_one_delivery_sees_the_handlers_exception() -> None:
    seen: list[str] = []
    service = Service("shop")

    class Session: ...

    async def session() -> AsyncIterator[Session]:
        try:
            yield Session()
            seen.append("commit")
        except ValueError:
            seen.append("rollback")
            raise

    session.__annotations__["return"] = AsyncIterator[Session]
    service.resource(per="delivery")(session)

    async def work(placed: Placed, session: Any) -> None:
        if placed.number:
            raise ValueError

    work.__annotations__["session"] = Session
    service.on(Placed, name="work", retry=immediate(1))(work)
    run = process(service)
    await run(Played())
    await run(Played(b'{"number": 1}'))
    assert seen == ["commit", "rollback"]


async def test_a_run_whose_ack_was_lost_is_settled_and_not_repeated_when_its_message_comes_again() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> Shipped:
        runs.append(1)
        return Shipped()

    run = process(handling(work))
    first, again = Played(), Played(redelivered=1)
    first.refuse = [DeliveryLost("gone")]
    assert await run(first) == Release()
    outcome = await run(again)
    assert runs == [1]
    assert first.settled == again.settled == [outcome]


async def test_a_message_that_comes_again_waits_for_its_run_that_is_still_under_way() -> None:
    runs: list[int] = []
    go = asyncio.Event()

    async def work(placed: Placed) -> None:
        runs.append(1)
        await go.wait()

    run = process(handling(work))
    first, again = Played(), Played(redelivered=1)
    first.refuse = [DeliveryLost("gone")]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(first))
        await asyncio.sleep(0)
        tasks.create_task(run(again))
        await asyncio.sleep(0.01)
        assert again.settled == []
        go.set()
    assert runs == [1]
    assert again.settled == [Ack()]


async def test_another_attempt_or_a_message_without_an_id_of_its_own_is_run() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(1)

    run = process(handling(work))
    for delivery in (Played(), Played(), Played(attempt=2, redelivered=1), Played(redelivered=1, id_made_up=True)):
        delivery.refuse = [DeliveryLost("gone")]
        await run(delivery)
    assert len(runs) == 4


@pytest.mark.parametrize("away", [0, 1000 * Runs.KEPT], ids=["at once", "after an outage"])
async def test_f6_the_outcome_of_what_is_held_is_kept_until_it_may_have_come_again(away: float) -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(placed.number)

    run, loop = process(handling(work)), asyncio.get_running_loop()
    held, again = Played(), Played(redelivered=1)
    held.refuse = [DeliveryLost("too large for any copy", held=5 * Runs.KEPT)]
    await run(held)
    await run(Played(b'{"number": 1}', id="another"))
    given_back = loop.time() + 5 * Runs.KEPT + away
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: given_back)
        await run(Played(b'{"number": 2}', id="a third"))
        await run(again)
    assert runs == [0, 1, 2]
    assert again.settled == held.settled


async def test_a_lost_outcome_is_kept_however_long_nothing_comes() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(placed.number)

    run, loop = process(handling(work)), asyncio.get_running_loop()
    lost = Played()
    lost.refuse = [DeliveryLost("the broker is away")]
    await run(lost)
    hours_later = loop.time() + 100 * Runs.KEPT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: hours_later)
        await run(Played(b'{"number": 1}', id="another"))
        await run(Played(redelivered=1))
    assert runs == [0, 1]


async def test_messages_of_one_id_and_two_sources_both_run_whatever_was_lost() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(placed.number)

    run = process(handling(work))
    for number, source in enumerate(("/orders", "/legacy", "")):
        delivery = Played(b'{"number": %d}' % number, source=source, redelivered=number)
        delivery.refuse = [DeliveryLost("gone")]
        await run(delivery)
    assert runs == [0, 1, 2]


async def test_a_replay_that_comes_again_is_run_whatever_the_run_before_came_to() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise Reject("a bug, until the next deploy")

    run = process(handling(work))
    given_up, replay = Played(), Played(redelivered=1)
    given_up.routed_by = "order.placed"
    given_up.refuse = [DeliveryLost("its letter is stored, and it comes again to another worker")]
    await run(given_up)
    await run(replay)
    assert replay.settled == [Ack()]


async def test_unknown_types_are_looked_at_again_until_the_deploy_must_be_over() -> None:
    async def work(placed: Placed) -> None: ...

    run = process(handling(work))
    early, late = Played(type="order.lost"), Played(type="order.lost")
    late.waits_since = datetime.now(UTC) - timedelta(seconds=601)
    await run(early)
    await run(late)
    (again,), (dead,) = early.settled, late.settled
    assert isinstance(again, Retry)
    assert (again.delay, again.attempt) == (timedelta(seconds=10), 1)
    assert isinstance(dead, DeadLetter)
    assert (dead.failure.reason, dead.failure.attempts) == ("unknown-type", 0)


def test_ids_are_unique_and_repeatable_where_they_must_be() -> None:
    ids = Ids()
    assert len({ids() for _ in range(1000)}) == 1000
    first, second = context(), context()
    assert first.publish(Shipped(), Shipped()) != second.publish(Shipped(), Shipped())
    same = replace(first.message)
    assert context(message=same).publish(Shipped()) == [first.outgoing[0].message.id]
