"""What goes wrong in the life of one delivery, and what comes of it."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import (
    Ack,
    ConfigurationError,
    Context,
    DeadLetter,
    Event,
    Events,
    Fate,
    Handler,
    Outcome,
    Process,
    Reject,
    Release,
    Retry,
    RetryAfter,
    Service,
    Unroutable,
    exponential,
    fixed,
    immediate,
)
from bus.errors import DeliveryLost

from .played import Placed, Played, Shipped, Slots, handling, process


async def outcome_of(work: Callable[..., Any], delivery: Played | None = None, **options: Any) -> Outcome:
    """Run one delivery of a handler, and return what it was settled with."""
    delivery = delivery or Played()
    await process(handling(work, **options))(delivery)
    (outcome,) = delivery.settled
    return outcome


def raising(error: BaseException) -> Callable[..., Any]:
    async def work(event: Event) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (ValueError("x"), 1, (timedelta(seconds=7), 2)),
        (ValueError("x"), 3, "exhausted"),
        (ValueError("x"), 8, "exhausted"),
        (Reject("never"), 1, "rejected"),
        (RetryAfter(90), 1, (timedelta(seconds=90), 2)),
        (RetryAfter(timedelta(days=3)), 2, (timedelta(days=3), 3)),
        (RetryAfter(-5), 1, (timedelta(), 2)),
        (RetryAfter(90), 3, "exhausted"),
        (SystemExit(3), 1, (timedelta(seconds=7), 2)),
        (SystemExit(3), 3, "exhausted"),
        (asyncio.CancelledError(), 1, (timedelta(seconds=7), 2)),
        (asyncio.CancelledError(), 3, "exhausted"),
        (ExceptionGroup("two", [ValueError(), KeyError()]), 1, (timedelta(seconds=7), 2)),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_a_handler_raises_is_judged_by_its_policy(error: BaseException, attempt: int, expected: Any) -> None:
    outcome = await outcome_of(raising(error), Played(attempt=attempt), retry=fixed(3, 7))
    if isinstance(outcome, Retry):
        assert (outcome.delay, outcome.attempt) == expected
        assert outcome.failure.attempts == attempt
    else:
        assert isinstance(outcome, DeadLetter)
        assert (outcome.failure.reason, outcome.failure.attempts) == (expected, attempt)


async def test_the_same_from_a_plain_function() -> None:
    for error in (SystemExit(1), asyncio.CancelledError(), StopIteration(), ValueError("x")):

        def work(placed: Placed, error: Any = error) -> None:
            raise error

        work.__annotations__.pop("error")
        outcome = await outcome_of(work, retry=fixed(3, 7))
        assert isinstance(outcome, Retry), error


async def test_who_asks_to_be_tried_again_is_tried_again_under_a_policy_for_other_errors() -> None:
    outcome = await outcome_of(raising(RetryAfter(90)), retry=exponential(3).retry_on(ConnectionError))
    assert isinstance(outcome, Retry)
    assert outcome.delay == timedelta(seconds=90)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_cancellation_that_nobody_asked_for_says_so(plain: bool) -> None:
    async def awaited(placed: Placed) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    def threaded(placed: Placed) -> None:
        raise asyncio.CancelledError

    outcome = await outcome_of(threaded if plain else awaited, retry=immediate(1))
    assert isinstance(outcome, DeadLetter)
    assert (outcome.failure.error_type, outcome.failure.reason) == ("HandlerError", "exhausted")
    assert "though nobody cancelled it" in outcome.failure.error


def swallowing(ends: str) -> Callable[..., Any]:
    """A handler that makes something of its own of being cancelled."""

    async def work(placed: Placed) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            if ends == "raises":
                raise ValueError("its own") from None
            if ends == "exits":
                sys.exit(1)

    return work


@pytest.mark.parametrize("ends", ["returns", "raises", "exits"])
@pytest.mark.parametrize("timeout", [60, 0.05])
async def test_a_stop_is_neither_success_nor_failure_whatever_the_handler_makes_of_it(
    ends: str, timeout: float
) -> None:
    delivery, slots, running = Played(), Slots(), asyncio.Event()

    async def work(placed: Placed) -> None:
        running.set()
        await swallowing(ends)(placed)

    run = process(handling(work, timeout=timeout), slots=slots)
    task = asyncio.ensure_future(run(delivery))
    await running.wait()
    if timeout < 1:
        # the timeout and the stop come in one turn of the loop
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time() + timeout, task.cancel)
        time.sleep(2 * timeout)
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (delivery.settled, slots.given) == ([], 1)


@pytest.mark.parametrize("ends", ["is cancelled", "returns"])
@pytest.mark.parametrize("first", ["stop", "timeout"])
async def test_a_stop_beside_a_timeout_is_a_stop(first: str, ends: str) -> None:
    delivery = Played()

    async def work(placed: Placed) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.05 if first == "stop" else 0.15, task.cancel)
        time.sleep(0.2)  # both are due in one turn of the loop
        await (asyncio.sleep(60) if ends == "is cancelled" else swallowing(ends)(placed))

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(process(handling(work, timeout=0.1))(delivery))
    assert delivery.settled == []


async def test_an_async_handler_that_returns_after_its_timeout_has_failed() -> None:
    outcome = await outcome_of(swallowing("returns"), timeout=0.01, retry=immediate(1))
    assert isinstance(outcome, DeadLetter)
    assert outcome.failure.error == "the handler ran past its timeout of 0.01 s"


async def test_what_a_handler_raises_after_its_timeout_is_its_failure() -> None:
    outcome = await outcome_of(swallowing("raises"), timeout=0.01, retry=immediate(1))
    assert isinstance(outcome, DeadLetter)
    assert outcome.failure.error == "its own"


async def test_a_plain_function_that_returns_after_its_timeout_has_failed_and_is_settled_then() -> None:
    go, delivery, slots = threading.Event(), Played(), Slots()

    def work(placed: Placed) -> Shipped:
        go.wait()
        return Shipped()

    task = asyncio.ensure_future(process(handling(work, timeout=0.01, retry=fixed(2, 7)), slots=slots)(delivery))
    await asyncio.sleep(0.05)
    assert (delivery.settled, slots.given) == ([], 0)
    go.set()
    assert isinstance(await task, Retry)
    assert [type(outcome) for outcome in delivery.settled] == [Retry]
    assert slots.given == 1


async def test_a_stop_does_not_wait_for_a_plain_function() -> None:
    go, delivery = threading.Event(), Played()

    def work(placed: Placed) -> None:
        go.wait()

    task = asyncio.ensure_future(process(handling(work))(delivery))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert delivery.settled == []


def in_the_background(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that makes a plain function awaitable."""

    @functools.wraps(function)
    async def wrapper(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    return wrapper


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of a plain kind round an async function."""

    @functools.wraps(function)
    def wrapper(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    return wrapper


async def test_a_decorated_handler_is_awaited_where_it_or_what_it_wraps_is_async() -> None:
    def plain(placed: Placed) -> Shipped:
        return Shipped(number=1)

    async def awaited(placed: Placed) -> Shipped:
        return Shipped(number=1)

    for work in (in_the_background(plain), in_the_background(traced(plain)), traced(awaited)):
        outcome = await outcome_of(work)
        assert isinstance(outcome, Ack)
        assert outcome.publish[0].message.body == b'{"number":1}'


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def test_an_exception_without_a_text_is_recorded_all_the_same() -> None:
    outcome = await outcome_of(raising(Mute()), retry=immediate(1))
    assert isinstance(outcome, DeadLetter)
    assert outcome.failure.error_type == "Mute"
    assert "str() raised RuntimeError" in outcome.failure.error


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"body": b"x" * 1001}, "too-large"),
        ({"body": b'{"number": "x"}'}, "undecodable"),
        ({"body": b"\xff"}, "undecodable"),
        ({"expires": datetime(2020, 1, 1, tzinfo=UTC)}, "expired"),
        ({"hops": 33}, "hops"),
    ],
)
async def test_what_cannot_be_handled_is_dead_lettered_and_never_run(changed: dict[str, Any], reason: str) -> None:
    outcome = await outcome_of(raising(AssertionError("it must not run")), Played(**changed))
    assert isinstance(outcome, DeadLetter)
    assert (outcome.failure.reason, outcome.failure.attempts) == (reason, 0)


@pytest.mark.parametrize(
    "changed", [{"hops": 32}, {"expires": datetime(2999, 1, 1, tzinfo=UTC)}, {"body": b'{"number": 1}' + b" " * 987}]
)
async def test_what_is_just_within_its_limit_is_handled(changed: dict[str, Any]) -> None:
    async def work(placed: Placed) -> None: ...

    assert await outcome_of(work, Played(**changed)) == Ack()


async def test_a_typed_handler_of_a_base_without_subclasses_never_gets_a_raw_message() -> None:
    class Base(Event): ...

    service = Service("shop")
    service.on(Base, name="work")(raising(AssertionError("it must not run")))
    delivery = Played()
    await process(service, events=Events())(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, Retry)
    assert outcome.failure.error_type == "UnknownType"


async def test_an_event_that_cannot_be_published_is_a_failure_and_nothing_of_it_goes_out() -> None:
    class Base(Event): ...

    class Big(Event, type="big"):
        text: str = "x" * 1001

    for unpublishable in (Base(), Big()):

        async def work(placed: Placed, context: Context, event: Any = unpublishable) -> list[Event]:
            return [Shipped(), event]

        work.__annotations__.pop("event")
        outcome = await outcome_of(work, retry=fixed(2, 1))
        assert isinstance(outcome, Retry)
        assert outcome.failure.error_type in (ConfigurationError.__name__, "MessageTooLarge")


async def test_a_middleware_that_forgets_to_return_its_outcome_is_a_failure_of_the_delivery() -> None:
    def forgetful(handler: Handler, inner: Process) -> Process:
        async def run(delivery: Any) -> Any:
            await inner(delivery)

        return run

    async def work(placed: Placed) -> None: ...

    delivery = Played()
    await process(handling(work, retry=immediate(1)), forgetful)(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, DeadLetter)
    assert "a middleware returned NoneType" in outcome.failure.error


async def test_a_middleware_that_is_cancelled_by_nobody_is_a_failure_of_the_delivery() -> None:
    def cancelled(handler: Handler, inner: Process) -> Process:
        async def run(delivery: Any) -> Any:
            raise asyncio.CancelledError

        return run

    async def work(placed: Placed) -> None: ...

    delivery = Played()
    await process(handling(work, retry=fixed(2, 1)), cancelled)(delivery)
    assert [type(outcome) for outcome in delivery.settled] == [Retry]


@pytest.mark.parametrize("outcome", [Ack(), Release()])
async def test_what_is_logged_and_returned_is_what_was_settled(outcome: Outcome) -> None:
    def decide(handler: Handler, inner: Process) -> Process:
        async def run(delivery: Any) -> Outcome:
            return outcome

        return run

    async def work(placed: Placed) -> None: ...

    delivery = Played()
    assert await process(handling(work), decide)(delivery) is delivery.settled[0] is outcome


async def test_what_no_queue_wanted_is_told_as_the_failure_that_it_was() -> None:
    async def work(placed: Placed, context: Context) -> None:
        context.publish(Shipped(), required=True)

    delivery = Played()
    delivery.refuse = [Unroutable("nobody", {"x": Fate.UNROUTABLE})]
    told = await process(handling(work, retry=immediate(1)))(delivery)
    assert isinstance(told, DeadLetter)
    assert told is delivery.settled[1]
    assert told.failure.error_type == "Unroutable"


class Session: ...


def with_session(work: Callable[..., Any], resource: Callable[..., Any], **options: Any) -> Service:
    service = Service("shop")
    service.resource(per="delivery")(resource)
    service.on(Placed, name="work", **options)(work)
    return service


async def test_a_resource_that_keeps_the_handlers_exception_makes_no_success_of_it() -> None:
    async def keeping() -> AsyncIterator[Session]:
        try:
            yield Session()
        except BaseException:
            await asyncio.sleep(0)

    async def work(placed: Placed, session: Session) -> None:
        if placed.number:
            raise Reject("never")
        await asyncio.sleep(60)

    run = process(with_session(work, keeping))
    rejected, stopped = Played(b'{"number": 1}'), Played()
    await run(rejected)
    (outcome,) = rejected.settled
    assert isinstance(outcome, DeadLetter)
    assert (outcome.failure.reason, outcome.failure.error) == ("rejected", "never")
    task = asyncio.ensure_future(run(stopped))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.settled == []


async def test_a_resource_that_cannot_be_committed_is_a_failure_and_nothing_is_published() -> None:
    async def failing() -> AsyncIterator[Session]:
        yield Session()
        raise ConnectionError("the commit was refused")

    async def work(placed: Placed, session: Session) -> Shipped:
        return Shipped()

    delivery = Played()
    await process(with_session(work, failing, retry=fixed(2, 1)))(delivery)
    (outcome,) = delivery.settled
    assert isinstance(outcome, Retry)
    assert outcome.failure.error == "the commit was refused"


async def test_a_resource_that_cannot_be_opened_is_a_failure() -> None:
    async def failing() -> AsyncIterator[Session]:
        raise ConnectionError("no database")
        yield Session()

    delivery = Played()
    await process(with_session(raising(AssertionError("it must not run")), failing, retry=fixed(2, 1)))(delivery)
    assert [type(outcome) for outcome in delivery.settled] == [Retry]


async def test_a_failure_whose_settling_was_lost_is_settled_as_it_was_when_it_comes_again() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(1)
        raise ValueError("once")

    run = process(handling(work, retry=fixed(3, 7)))
    first, again, third = Played(), Played(redelivered=1), Played(redelivered=2)
    first.refuse = [DeliveryLost("gone")]
    again.refuse = [DeliveryLost("gone again")]
    for delivery in (first, again, third):
        await run(delivery)
    assert runs == [1]
    assert first.settled == again.settled == third.settled


async def test_who_waits_for_an_earlier_run_and_is_stopped_does_not_make_others_forget_it() -> None:
    runs: list[int] = []
    go = asyncio.Event()

    async def work(placed: Placed) -> None:
        runs.append(1)
        await go.wait()

    run = process(handling(work))
    first, stopped, again = Played(), Played(redelivered=1), Played(redelivered=2)
    first.refuse = [DeliveryLost("gone")]
    running = asyncio.ensure_future(run(first))
    await asyncio.sleep(0.01)
    waiting = asyncio.ensure_future(run(stopped))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    third = asyncio.ensure_future(run(again))
    await asyncio.sleep(0.01)
    go.set()
    await asyncio.wait([running, third])
    assert runs == [1]
    assert (stopped.settled, again.settled) == ([], [Ack()])


async def test_a_run_that_was_stopped_is_run_again() -> None:
    runs: list[int] = []

    async def work(placed: Placed) -> None:
        runs.append(1)
        if len(runs) == 1:
            await asyncio.sleep(60)

    run = process(handling(work))
    task = asyncio.ensure_future(run(Played()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    again = Played(redelivered=1)
    await run(again)
    assert (len(runs), again.settled) == (2, [Ack()])
