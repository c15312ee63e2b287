"""The memory transport: queues, turns, delays and dead letters, without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import Ack, DeadLetter, Failure, Fate, Letter, Message, Release, Retry, Unroutable
from bus.errors import DeliveryLost
from bus.message import Outgoing
from bus.transport import Subscription
from bus.transport.memory import MemoryConsumer, MemoryDelivery, MemoryTransport


START = datetime(2026, 1, 1, tzinfo=UTC)


def out(id: str, type: str = "a.b", **options: Any) -> Outgoing:
    return Outgoing(Message(id=id, type=type, version=1, source="/test", time=START, body=id.encode()), **options)


def subscription(handler: str = "work", patterns: Sequence[str] = ("#",), **options: Any) -> Subscription:
    return Subscription(service="shop", handler=handler, patterns=tuple(patterns), **options)


def failure(**changed: Any) -> Failure:
    given: dict[str, Any] = {
        "service": "shop",
        "handler": "work",
        "reason": "exhausted",
        "error_type": "ValueError",
        "error": "x",
        "traceback": "",
        "attempts": 1,
        "first_failed_at": START,
        "last_failed_at": START,
        "worker": "test",
    }
    return Failure(**given | changed)


@asynccontextmanager
async def consuming(
    transport: MemoryTransport, handler: str = "work", limit: int = 10, patterns: Sequence[str] = ("#",)
) -> AsyncIterator[MemoryConsumer]:
    async with transport.consume(subscription(handler, patterns), limit=limit) as consumer:
        yield consumer


async def take(consumer: MemoryConsumer, size: int) -> list[MemoryDelivery]:
    """Take what is there at once."""
    async with asyncio.timeout(5):
        return [await anext(consumer) for _ in range(size)]


def ids(deliveries: Sequence[MemoryDelivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


async def waits(consumer: MemoryConsumer) -> bool:
    """Tell whether there is nothing to take."""
    task = asyncio.ensure_future(anext(consumer))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = not task.done()
    task.cancel()
    await asyncio.wait([task])
    return waiting


async def letters(transport: MemoryTransport, service: str = "shop") -> list[Letter]:
    return [letter async for letter in transport.dead_letters.browse(service)]


@pytest.fixture
async def transport() -> AsyncIterator[MemoryTransport]:
    opened = MemoryTransport()
    await opened.declare([subscription()])
    yield opened
    await opened.aclose()


@pytest.fixture
async def narrow() -> AsyncIterator[MemoryTransport]:
    """A transport whose one queue wants one type only."""
    opened = MemoryTransport()
    await opened.declare([subscription(patterns=["a.b"])])
    yield opened
    await opened.aclose()


async def test_messages_come_in_the_order_in_which_they_were_published(transport: MemoryTransport) -> None:
    await transport.publish([out("1"), out("2")])
    await transport.publish([out("3")])
    async with consuming(transport) as consumer:
        taken = await take(consumer, 3)
    assert ids(taken) == ["1", "2", "3"]
    assert [(delivery.attempt, delivery.redelivered, delivery.first_failed_at) for delivery in taken] == [
        (1, 0, None)
    ] * 3


async def test_each_subscription_that_matches_has_a_copy_of_its_own(transport: MemoryTransport) -> None:
    await transport.declare(
        [subscription("one", ["a.*"]), subscription("other", ["a.b", "#"]), subscription("no", ["c"])]
    )
    await transport.publish([out("1")])
    async with consuming(transport, "one", patterns=["a.*"]) as one, consuming(transport, "other") as other:
        assert ids(await take(one, 1)) == ids(await take(other, 1)) == ["1"]
        assert await waits(other)
    assert transport.waiting() == {}
    assert len(transport.queues["shop.no"].ready) == 0


async def test_a_pattern_is_bound_from_then_on_and_those_of_earlier_versions_stay(transport: MemoryTransport) -> None:
    await transport.declare([subscription("late", patterns=["a.b"])])
    await transport.publish([out("1"), out("2", "c.d")])
    await transport.declare([subscription("late", patterns=["c.d"])])
    await transport.publish([out("3"), out("4", "c.d")])
    async with consuming(transport, "late", patterns=["c.d"]) as consumer:
        assert ids(await take(consumer, 3)) == ["1", "3", "4"]


async def test_consumers_of_one_queue_take_turns(transport: MemoryTransport) -> None:
    async with consuming(transport) as one, consuming(transport) as other:
        first, second = ([asyncio.ensure_future(anext(consumer)) for _ in range(2)] for consumer in (one, other))
        await asyncio.sleep(0)
        await transport.publish([out(str(number)) for number in range(4)])
        await asyncio.wait([*first, *second])
        taken = [sorted(ids([task.result() for task in tasks])) for tasks in (first, second)]
    assert sorted(taken) == [["0", "2"], ["1", "3"]]


async def test_of_two_that_were_paused_the_one_that_goes_on_gets_what_is_ordered(transport: MemoryTransport) -> None:
    ordered = subscription("ordered", ordered=True)
    async with transport.consume(ordered, limit=10) as one, transport.consume(ordered, limit=10) as other:
        await one.limit(0)
        await other.limit(0)
        await other.limit(10)
        await transport.publish([out("1")])
        assert ids(await take(other, 1)) == ["1"]


async def test_handlers_that_read_one_foreign_queue_get_its_messages_in_turns(transport: MemoryTransport) -> None:
    await transport.declare([subscription(name, [], sources=("theirs",)) for name in ("one", "other")])
    for number in range(4):
        await transport.publish([out(str(number), address="theirs")])
        await transport.publish([out("x", address="shop.work")])
    async with consuming(transport, "one", patterns=[]) as one, consuming(transport, "other", patterns=[]) as other:
        assert (ids(await take(one, 2)), ids(await take(other, 2))) == (["0", "2"], ["1", "3"])


async def test_a_consumer_holds_no_more_unsettled_than_its_limit(transport: MemoryTransport) -> None:
    await transport.publish([out(str(number)) for number in range(4)])
    async with consuming(transport, limit=2) as consumer:
        taken = await take(consumer, 2)
        assert await waits(consumer)
        await taken[0].settle(Ack())
        assert ids(await take(consumer, 1)) == ["2"]
        assert await waits(consumer)


async def test_a_limit_of_zero_pauses_and_what_is_taken_can_still_be_settled(transport: MemoryTransport) -> None:
    await transport.publish([out("1"), out("2")])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        assert not consumer.paused
        await consumer.limit(0)
        assert consumer.paused
        await taken.settle(Ack())
        assert await waits(consumer)
        assert transport.waiting() == {}
        waiting = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(0)
        await consumer.limit(1)
        assert (await waiting).message.id == "2"


async def test_what_a_cancelled_wait_was_given_goes_to_the_next_as_if_nobody_had_seen_it(
    transport: MemoryTransport,
) -> None:
    async with consuming(transport) as consumer:
        cancelled = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(0)
        await transport.publish([out("1"), out("2")])
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert cancelled.cancelled()
        taken = await take(consumer, 2)
    assert [(delivery.message.id, delivery.redelivered) for delivery in taken] == [("1", 0), ("2", 0)]


async def test_a_cancelled_wait_takes_nothing(transport: MemoryTransport) -> None:
    async with consuming(transport) as consumer:
        assert await waits(consumer)
        await transport.publish([out("1")])
        assert ids(await take(consumer, 1)) == ["1"]


async def test_what_a_wait_was_given_before_its_consumer_left_comes_once(transport: MemoryTransport) -> None:
    async with consuming(transport) as consumer:
        cancelled = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(0)
        await transport.publish([out("1")])
    cancelled.cancel()
    await asyncio.wait([cancelled])
    async with consuming(transport) as consumer:
        assert ids(await take(consumer, 1)) == ["1"]
        assert await waits(consumer)


async def test_leaving_gives_back_the_unsettled_in_their_order(transport: MemoryTransport) -> None:
    await transport.publish([out(str(number)) for number in range(4)])
    async with consuming(transport) as consumer:
        taken = await take(consumer, 3)
        await taken[1].settle(Ack())
    async with consuming(transport) as consumer:
        again = await take(consumer, 3)
    assert [(delivery.message.id, delivery.redelivered) for delivery in again] == [("0", 1), ("2", 1), ("3", 0)]


async def test_a_release_puts_a_message_back_where_it_stood(transport: MemoryTransport) -> None:
    await transport.publish([out("1"), out("2")])
    async with consuming(transport) as consumer:
        for redelivered in range(3):
            (taken,) = await take(consumer, 1)
            assert (taken.message.id, taken.redelivered, taken.attempt) == ("1", redelivered, 1)
            await taken.settle(Release())


async def test_a_crash_cuts_off_every_consumer_and_what_it_held_comes_again(transport: MemoryTransport) -> None:
    await transport.publish([out("1")])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        transport.crash()
        with pytest.raises(DeliveryLost, match="1"):
            await taken.settle(Ack())
        await taken.settle(Release())
        async with consuming(transport) as other:
            (again,) = await take(other, 1)
            assert (again.message.id, again.redelivered) == ("1", 1)
            await again.settle(Ack())
    assert transport.waiting() == {}


@pytest.mark.parametrize("outcome", [Ack(), Retry(timedelta(), failure(), 2), DeadLetter(failure())])
async def test_a_delivery_is_settled_once(transport: MemoryTransport, outcome: Any) -> None:
    await transport.publish([out("1")])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        await taken.settle(Ack())
        with pytest.raises(DeliveryLost):
            await taken.settle(outcome)
        assert await waits(consumer)


async def test_a_retry_comes_after_its_delay_with_its_attempt_and_goes_to_nobody_else(
    transport: MemoryTransport,
) -> None:
    await transport.declare([subscription("other")])
    await transport.publish([out("1")])
    async with consuming(transport) as consumer, consuming(transport, "other") as other:
        (taken,), (copy,) = await take(consumer, 1), await take(other, 1)
        await copy.settle(Ack())
        began = asyncio.get_running_loop().time()
        await taken.settle(Retry(timedelta(milliseconds=50), failure(first_failed_at=START), 2))
        assert transport.waiting() == {"delayed or waiting for a retry": 1}
        (again,) = await take(consumer, 1)
        assert asyncio.get_running_loop().time() - began >= 0.05
        assert (again.attempt, again.redelivered, again.first_failed_at) == (2, 0, START)
        assert again.message == taken.message
        assert await waits(other)


async def test_a_retry_without_a_delay_goes_to_the_end_of_the_queue(transport: MemoryTransport) -> None:
    await transport.publish([out("1"), out("2")])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        await taken.settle(Retry(timedelta(), failure(), 2))
        assert [(d.message.id, d.attempt) for d in await take(consumer, 2)] == [("2", 1), ("1", 2)]


async def test_a_short_delay_overtakes_a_long_one(transport: MemoryTransport) -> None:
    long, short = timedelta(milliseconds=60), timedelta(milliseconds=20)
    await transport.publish([out("long", delay=long), out("short", delay=short), out("now")])
    async with consuming(transport) as consumer:
        assert ids(await take(consumer, 3)) == ["now", "short", "long"]


async def test_a_delayed_message_goes_to_who_subscribes_when_it_is_due(transport: MemoryTransport) -> None:
    await transport.publish([out("1", "c.d", delay=timedelta(milliseconds=20))])
    await transport.declare([subscription("late", ["c.d"])])
    async with consuming(transport, "late", patterns=["c.d"]) as consumer:
        assert ids(await take(consumer, 1)) == ["1"]


async def test_closing_forgets_what_is_delayed_and_may_be_done_twice(transport: MemoryTransport) -> None:
    await transport.publish([out("1", delay=timedelta(milliseconds=10))])
    await transport.aclose()
    await transport.aclose()
    assert transport.waiting() == {}
    async with consuming(transport) as consumer:
        await asyncio.sleep(0.03)
        assert await waits(consumer)


async def test_an_event_that_nobody_wants_is_legal(narrow: MemoryTransport) -> None:
    await narrow.publish([out("1", "c")])
    assert len(narrow.queues["shop.work"].ready) == 0


@pytest.mark.parametrize("wrong", [out("2", "c", required=True), out("2", address="shop.nobody")])
async def test_of_a_publish_with_one_that_no_queue_wants_the_others_are_stored(
    narrow: MemoryTransport, wrong: Outgoing
) -> None:
    with pytest.raises(Unroutable) as raised:
        await narrow.publish([out("1"), wrong, out("3", "c")])
    assert raised.value.fates == {"1": Fate.STORED, "2": Fate.UNROUTABLE, "3": Fate.STORED}
    async with consuming(narrow, patterns=["a.b"]) as consumer:
        assert ids(await take(consumer, 1)) == ["1"]
        assert await waits(consumer)


async def test_of_a_publish_to_a_queue_that_is_not_there_after_a_delay_nothing_is_stored(
    narrow: MemoryTransport,
) -> None:
    with pytest.raises(Unroutable) as raised:
        await narrow.publish([out("1"), out("2", delay=timedelta(hours=1), address="shop.nobody")])
    assert raised.value.fates == {"1": Fate.REFUSED, "2": Fate.UNROUTABLE}
    assert len(narrow.queues["shop.work"].ready) == 0


async def test_an_address_is_one_queue_whatever_it_subscribes_to(transport: MemoryTransport) -> None:
    await transport.declare([subscription("other", ["c"]), subscription("source", [], sources=("theirs",))])
    await transport.publish([out("1", address="shop.other"), out("2", address="theirs")])
    async with consuming(transport, "other") as other, consuming(transport, "source") as source:
        assert (ids(await take(other, 1)), ids(await take(source, 1))) == (["1"], ["2"])
    async with consuming(transport) as consumer:
        assert await waits(consumer)


async def test_what_an_ack_publishes_is_published(transport: MemoryTransport) -> None:
    await transport.publish([out("1")])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        await taken.settle(Ack(publish=(out("2"), out("3"))))
        assert ids(await take(consumer, 2)) == ["2", "3"]


async def test_an_ack_with_an_event_that_no_queue_wants_leaves_its_delivery_unsettled(narrow: MemoryTransport) -> None:
    await narrow.publish([out("1")])
    async with consuming(narrow, patterns=["a.b"]) as consumer:
        (taken,) = await take(consumer, 1)
        with pytest.raises(Unroutable):
            await taken.settle(Ack(publish=(out("2"), out("3", "c", required=True))))
        (second,) = await take(consumer, 1)
        assert ids([second]) == ["2"]
        assert narrow.waiting() == {"in shop.work": 2}
        await taken.settle(Ack())
        await second.settle(Ack())
    assert narrow.waiting() == {}


async def dead_lettered(transport: MemoryTransport, *given: str, service: str = "shop") -> None:
    await transport.publish([out(id) for id in given])
    async with consuming(transport) as consumer:
        for taken in await take(consumer, len(given)):
            await taken.settle(DeadLetter(failure(service=service, exception=ValueError("live"))))


async def test_a_dead_letter_keeps_the_message_and_the_record(transport: MemoryTransport) -> None:
    await dead_lettered(transport, "1")
    (letter,) = await letters(transport)
    assert (letter.service, letter.handler, letter.message.id, letter.message.body) == ("shop", "work", "1", b"1")
    assert letter.failure == failure()
    assert letter.failed_again == 0


async def test_letters_are_those_of_one_service_oldest_first_and_looking_changes_nothing(
    transport: MemoryTransport,
) -> None:
    await dead_lettered(transport, "1", "2")
    await dead_lettered(transport, "3", service="other")
    for _ in range(50):
        assert [letter.message.id for letter in await letters(transport)] == ["1", "2"]
    assert [letter.message.id for letter in transport.dead_letters.open()] == ["1", "2", "3"]
    assert len({letter.id for letter in transport.dead_letters.open()}) == 3


async def test_browsing_shows_what_was_there_when_it_began(transport: MemoryTransport) -> None:
    await dead_lettered(transport, "1", "2")
    seen = []
    async for letter in transport.dead_letters.browse("shop"):
        seen.append(letter.message.id)
        if len(seen) == 1:
            await dead_lettered(transport, "3")
    assert seen == ["1", "2"]


async def test_a_replay_is_a_first_attempt_of_the_one_handler_and_closes_the_letter(transport: MemoryTransport) -> None:
    await dead_lettered(transport, "1")
    await transport.declare([subscription("other")])
    (letter,) = await letters(transport)
    await transport.dead_letters.replay(letter)
    assert await letters(transport) == []
    async with consuming(transport) as consumer, consuming(transport, "other") as other:
        (again,) = await take(consumer, 1)
        assert (again.message, again.attempt, again.first_failed_at) == (letter.message, 1, None)
        assert await waits(other)
        await again.settle(DeadLetter(failure()))
    (failed_again,) = await letters(transport)
    assert failed_again.failed_again == 1
    assert failed_again.id != letter.id


async def test_a_letter_is_acted_on_once(transport: MemoryTransport) -> None:
    await dead_lettered(transport, "1", "2")
    replayed, discarded = await letters(transport)
    await transport.dead_letters.replay(replayed)
    await transport.dead_letters.discard(discarded)
    for act in (transport.dead_letters.replay, transport.dead_letters.discard):
        for letter in (replayed, discarded):
            with pytest.raises(LookupError, match=f"dead letter {letter.id} of shop"):
                await act(letter)
    async with consuming(transport) as consumer:
        assert ids(await take(consumer, 1)) == ["1"]
        assert await waits(consumer)


async def test_a_letter_whose_handler_is_gone_stays_open(transport: MemoryTransport) -> None:
    await dead_lettered(transport, "1")
    transport.queues.clear()
    (letter,) = await letters(transport)
    with pytest.raises(Unroutable):
        await transport.dead_letters.replay(letter)
    assert await letters(transport) == [letter]


async def test_what_is_left_to_do_is_told_in_words(transport: MemoryTransport) -> None:
    assert transport.waiting() == {}
    await transport.publish([out("1"), out("2"), out("3", delay=timedelta(hours=1))])
    assert transport.waiting() == {"delayed or waiting for a retry": 1}  # nobody consumes
    async with consuming(transport) as consumer:
        await take(consumer, 1)
        assert transport.waiting() == {
            "delayed or waiting for a retry": 1,
            "in shop.work": 1,
            "ready for shop.work": 1,
        }


async def test_whoever_watches_is_told_of_what_is_sent_and_settled(transport: MemoryTransport) -> None:
    sent: list[str] = []
    settled: list[int] = []
    transport.on_sent = lambda outgoing: sent.append(outgoing.message.id)
    transport.on_settled = lambda: settled.append(1)
    await transport.publish([out("1"), out("2", delay=timedelta(hours=1))])
    assert (sent, settled) == (["1", "2"], [])
    async with consuming(transport) as consumer:
        (taken,) = await take(consumer, 1)
        await taken.settle(Ack(publish=(out("3"),)))
    assert (sent, settled) == (["1", "2", "3"], [1])
