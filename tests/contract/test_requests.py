"""R1 to R4: a request returns its answer, tells at once that there will be none, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest

from bus import (
    BusUnavailable,
    Context,
    Event,
    Message,
    Reject,
    RequestFailed,
    RequestTimeout,
    RetryAfter,
    Service,
    Unroutable,
    fixed,
)

from .stage import WITHIN, Log, Stage


class Asked(Event, type="quote.asked"):
    number: int = 0


class Priced(Event, type="price.asked"):
    number: int = 0


class Other(Event, type="quote.other"):
    number: int = 0


class Quoted(Event, type="quote.given", version=2):
    number: int
    by: str = "quotes"


class QuotedBefore(Event, type="quote.given"):
    count: int


class Broken(Event, type="quote.given", version=2):
    number: str


class Newer(Event, type="quote.given", version=3):
    number: int


@Quoted.upcast(1)
def count_became_number(data: dict[str, Any]) -> dict[str, Any]:
    return {"number": data["count"]}


def quoting() -> Service:
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        return Quoted(number=asked.number)

    return service


async def test_r1_the_caller_gets_the_event_that_the_handler_returned(stage: Stage) -> None:
    seen: Log[Quoted] = Log()
    service = quoting()

    @service.on(Quoted)
    async def note(quoted: Quoted) -> None:
        seen.append(quoted)

    async with stage.hosting(service):
        answer = await stage.bus.request(Asked(number=7), Quoted, timeout=WITHIN)
        # it is an event as any other, and was published
        await seen.reaches(1)
    assert answer == seen[0] == Quoted(number=7)
    assert stage.bus.dropped_replies == 0


async def test_r1_many_requests_at_once_each_get_their_own_answer(stage: Stage) -> None:
    service = Service("quotes", concurrency=50)

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        await asyncio.sleep((100 - asked.number) / 1000)  # the last are the first
        return Quoted(number=asked.number)

    async with stage.hosting(service), asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(stage.bus.request(Asked(number=n), Quoted, timeout=WITHIN)) for n in range(100)]
    assert [task.result().number for task in asking] == list(range(100))


async def test_r1_an_answer_that_others_gave_on_the_way_is_the_first_callers(stage: Stage) -> None:
    quotes, prices = Service("quotes"), Service("prices")

    @quotes.on(Asked)
    async def ask_for_the_price(asked: Asked) -> Priced:
        return Priced(number=asked.number)

    @prices.on(Priced, retry=fixed(2, 0.05))
    async def price(priced: Priced, context: Context) -> list[Event]:
        if context.attempt == 1:
            raise ConnectionError("not yet")
        return [Other(), Quoted(number=priced.number, by="prices")]

    async with stage.hosting(quotes, prices):
        answer = await stage.bus.request(Asked(number=7), Quoted, timeout=WITHIN)
    assert answer == Quoted(number=7, by="prices")


async def test_r1_a_request_that_was_retried_is_answered(stage: Stage) -> None:
    service = Service("quotes")

    @service.on(Asked, retry=fixed(3, 0.05))
    async def quote(asked: Asked, context: Context) -> Quoted:
        if context.attempt < 3:
            raise ConnectionError("not yet")
        return Quoted(number=context.attempt)

    async with stage.hosting(service):
        assert await stage.bus.request(Asked(), Quoted, timeout=WITHIN) == Quoted(number=3)


async def test_r1_what_is_asked_of_others_with_a_delay_or_replayed_still_answers_who_waits(stage: Stage) -> None:
    mended = False
    quotes, prices = Service("quotes"), Service("prices")

    @quotes.on(Asked)
    async def ask_for_the_price(asked: Asked, context: Context) -> None:
        if not mended:
            raise Reject("it tells nobody, as it returns no quote")
        context.publish(Priced(number=asked.number), delay=0.1)

    @prices.on(Priced)
    async def price(priced: Priced, context: Context) -> Quoted:
        if context.attempt == 1:
            raise RetryAfter(0.1)
        return Quoted(number=priced.number)

    async with stage.hosting(quotes, prices), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(stage.bus.request(Asked(number=7), Quoted, timeout=WITHIN))
        [letter] = await stage.letters("quotes")
        mended = True
        await stage.transport.dead_letters.replay(letter)
    assert asking.result() == Quoted(number=7)


async def test_r1_an_ordered_handler_answers_too(stage: Stage) -> None:
    service = Service("quotes")

    @service.on(Asked, ordered_by="number", retry=fixed(2, 0.05))
    async def quote(asked: Asked, context: Context) -> Quoted:
        if asked.number and context.attempt == 1:
            raise ConnectionError("not yet")
        return Quoted(number=context.attempt)

    async with stage.hosting(service):
        answers = await asyncio.gather(
            *(stage.bus.request(Asked(number=number), Quoted, timeout=WITHIN) for number in (0, 1, 1, 0))
        )
    assert [answer.number for answer in answers] == [1, 2, 2, 1]


async def test_r1_without_an_answer_in_time_the_caller_is_told_and_the_handler_goes_on(stage: Stage) -> None:
    done: Log[int] = Log()
    go = asyncio.Event()
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> None:
        await go.wait()
        done.append(asked.number)

    async with stage.hosting(service):
        told = await timed_out(stage, Asked(number=7))
        go.set()
        await done.reaches(1)
    assert re.match(r"quote.asked \w+: stored, but no quote.given came within [\d.]+ s\. It may be handled yet", told)


async def test_r1_a_request_that_nobody_subscribes_to_fails_at_once(stage: Stage) -> None:
    async with stage.hosting(quoting()):
        with pytest.raises(Unroutable):
            await stage.bus.request(Other(), Quoted, timeout=WITHIN)


async def test_r1_an_answer_of_an_older_version_is_upcast(stage: Stage) -> None:
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> QuotedBefore:
        return QuotedBefore(count=asked.number)

    async with stage.hosting(service):
        assert await stage.bus.request(Asked(number=7), Quoted, timeout=WITHIN) == Quoted(number=7)


async def test_r2_a_handler_that_gives_up_fails_the_request_at_once_with_the_reason(stage: Stage) -> None:
    service = Service("quotes")

    @service.on(Asked, retry=fixed(2, 0.05))
    async def quote(asked: Asked) -> Quoted | None:
        if asked.number:
            raise Reject("no such product")
        raise ValueError("broken")

    async with stage.hosting(service):
        with pytest.raises(RequestFailed) as rejected:
            await stage.bus.request(Asked(number=1), Quoted, timeout=WITHIN)
        with pytest.raises(RequestFailed) as exhausted:
            await stage.bus.request(Asked(number=0), Quoted, timeout=WITHIN)
        assert len(await stage.letters("quotes", 2)) == 2
    told = [(e.value.handler, e.value.reason, e.value.error_type, e.value.error) for e in (rejected, exhausted)]
    assert told == [
        ("quotes.quote", "rejected", "Reject", "no such product"),
        ("quotes.quote", "exhausted", "ValueError", "broken"),
    ]


async def test_r2_a_bystander_that_gives_up_does_not_fail_the_request(stage: Stage) -> None:
    go = asyncio.Event()
    quotes, audit = Service("quotes"), Service("audit")

    @quotes.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        await go.wait()
        return Quoted(number=asked.number)

    @audit.on("#")
    async def note(message: Message) -> None:
        raise Reject("the disk is full")

    @audit.on(Asked)
    async def price(asked: Asked) -> Priced:
        raise Reject("no price")

    async with stage.hosting(quotes, audit), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(stage.bus.request(Asked(number=7), Quoted, timeout=WITHIN))
        await stage.letters("audit", 2)
        go.set()
    assert asking.result() == Quoted(number=7)


async def test_r2_an_answer_that_cannot_be_read_fails_the_request(stage: Stage) -> None:
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Broken | Newer:
        return Newer(number=1) if asked.number else Broken(number="many")

    async with stage.hosting(service):
        with pytest.raises(RequestFailed, match="number: Input should be a valid integer") as broken:
            await stage.bus.request(Asked(number=0), Quoted, timeout=WITHIN)
        with pytest.raises(RequestFailed, match="version 3 is newer") as newer:
            await stage.bus.request(Asked(number=1), Quoted, timeout=WITHIN)
    assert (broken.value.reason, newer.value.reason) == ("undecodable", "unknown-version")


async def test_r3_a_late_answer_is_dropped_and_counted(stage: Stage) -> None:
    go = asyncio.Event()
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        if not asked.number:
            await go.wait()
        return Quoted(number=asked.number)

    async with stage.hosting(service):
        await timed_out(stage, Asked(number=0))
        go.set()
        await counted(stage, 1)
        # and is never taken for the answer to another
        assert await stage.bus.request(Asked(number=1), Quoted, timeout=WITHIN) == Quoted(number=1)
    assert stage.bus.dropped_replies == 1


async def test_r3_of_several_answers_the_first_counts(stage: Stage) -> None:
    first, second = Service("first"), Service("second")
    go = asyncio.Event()

    @first.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        return Quoted(number=1)

    @second.on(Asked)
    async def quote_later(asked: Asked) -> Quoted:
        await go.wait()
        return Quoted(number=2)

    async with stage.hosting(first, second):
        assert await stage.bus.request(Asked(), Quoted, timeout=WITHIN) == Quoted(number=1)
        go.set()
        await counted(stage, 1)


async def test_r4_a_cancelled_request_leaves_nothing_behind(stage: Stage) -> None:
    begun: Log[int] = Log()
    go = asyncio.Event()
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        begun.append(asked.number)
        await go.wait()
        return Quoted(number=asked.number)

    async with stage.hosting(service):
        asking = asyncio.create_task(stage.bus.request(Asked(), Quoted, timeout=WITHIN))
        await begun.reaches(1)
        assert len(stage.transport.replies) == 1
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert len(stage.transport.replies) == 0
        go.set()
        await counted(stage, 1)


async def test_r4_requests_leave_no_memory_behind(stage: Stage) -> None:
    async def ask(times: int) -> int:
        for _ in range(times):
            answers = await asyncio.gather(
                *(stage.bus.request(Asked(number=n), Quoted, timeout=WITHIN) for n in range(50)),
                stage.bus.request(Asked(number=-1), Quoted, timeout=0.05),
                return_exceptions=True,
            )
            assert answers[:50] == [Quoted(number=n) for n in range(50)]
            assert isinstance(answers[50], TimeoutError | BusUnavailable)
        await asyncio.sleep(0.1)  # what was acked last, and the log of it
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted | None:
        return Quoted(number=asked.number) if asked.number >= 0 else None

    async with stage.hosting(service):
        tracemalloc.start()
        try:
            held = [await ask(rounds) for rounds in (3, 10, 10, 10)]
        finally:
            tracemalloc.stop()
        assert len(stage.transport.replies) == 0
    # what leaks grows each time; what is held for a while, only at times
    assert min(after - before for before, after in pairwise(held)) < 500 * 100, held


async def timed_out(stage: Stage, asked: Asked) -> str:
    """Request what nobody answers in time, and return what the caller is told."""
    with pytest.raises(Unroutable):
        await stage.bus.request(Other(), Quoted, timeout=WITHIN)  # so that the connection is there
    with pytest.raises(RequestTimeout) as raised:
        await stage.bus.request(asked, Quoted, timeout=0.1 if stage.kind == "memory" else 1)
    return str(raised.value)


async def counted(stage: Stage, dropped: int) -> None:
    """Wait until so many replies were dropped."""
    async with asyncio.timeout(WITHIN):
        while stage.bus.dropped_replies < dropped:
            await asyncio.sleep(0.01)
    assert stage.bus.dropped_replies == dropped
