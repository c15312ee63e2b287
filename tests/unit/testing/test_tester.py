"""Tester: what a test sees of services."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bus import ConfigurationError, Context, Event, Reject, Service, SqliteStore, fixed
from bus.store.sqlite import SqliteCompletion
from bus.testing import Tester, context


class Placed(Event, type="order.placed"):
    number: int


class Changed(Event):
    number: int


class Paid(Changed, type="order.paid"):
    pass


class Shipped(Changed, type="order.shipped"):
    pass


class Store:
    def __init__(self) -> None:
        self.log: list[str] = []


def shop() -> Service:
    service = Service("shop")

    @service.resource
    async def store() -> AsyncIterator[Store]:
        yield Store()

    @service.on(Placed, retry=fixed(2, 1))
    async def place(placed: Placed, context: Context, store: Store) -> Shipped:
        store.log.append(f"{placed.number} at attempt {context.attempt}")
        if placed.number == 13:
            raise Reject("unlucky")
        if placed.number == 2 and context.attempt == 1:
            raise ConnectionError("no line")
        context.publish(Paid(number=placed.number))
        return Shipped(number=placed.number)

    return service


async def test_what_was_published_is_there_by_class_and_by_base() -> None:
    async with Tester(shop()) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert bus.published(Paid) == [Paid(number=1)]
        assert bus.published(Placed) == [Placed(number=1)]


async def test_a_base_class_stands_for_its_subclasses() -> None:
    service = shop()

    @service.on(Changed)
    async def changed(event: Changed) -> None: ...

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert bus.published(Changed) == [Paid(number=1), Shipped(number=1)]
        assert [message.type for message in bus.handled(changed)] == ["order.paid", "order.shipped"]


async def test_a_base_class_also_stands_for_what_nobody_subscribes_to() -> None:
    async with Tester(shop()) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert bus.published(Changed) == [Paid(number=1), Shipped(number=1)]
        assert bus.published(Event) == [Placed(number=1), Paid(number=1), Shipped(number=1)]


async def test_a_test_gives_its_own_resources() -> None:
    store = Store()
    async with Tester(shop(), resources={Store: store}) as bus:
        await bus.publish(Placed(number=2))
        await bus.settled()
    assert store.log == ["2 at attempt 1", "2 at attempt 2"]


async def test_a_resource_that_nobody_provides_is_an_error_at_once() -> None:
    service = Service("poor")

    @service.on(Placed)
    async def place(placed: Placed, store: Store) -> None: ...

    with pytest.raises(ConfigurationError, match="nobody provides Store"):
        Tester(service)


async def test_dead_letters_are_kept_and_can_be_replayed() -> None:
    async with Tester(shop()) as bus:
        await bus.publish(Placed(number=13))
        await bus.settled()
        (letter,) = bus.dead_letters()
        assert (letter.handler, letter.failure.reason, letter.failure.error) == ("place", "rejected", "unlucky")
        await bus.transport.dead_letters.replay(letter)
        await bus.settled()
        (again,) = bus.dead_letters()
        assert again.failed_again == 1


async def test_a_crash_runs_no_code_of_the_old_worker_and_loses_nothing() -> None:
    service, log = Service("crashing"), []

    @service.on(Placed)
    async def slow(placed: Placed) -> None:
        log.append("begins")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(30))
        finally:
            log.append("cleans up")

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.advance(10)
        await bus.crash()
        assert log == ["begins"]
        await bus.settled()
        assert log == ["begins", "begins", "cleans up"]
        assert len(bus.handled(slow)) == 1


async def test_a_failing_test_is_told_what_happened() -> None:
    with pytest.raises(AssertionError) as raised:
        async with Tester(shop()) as bus:
            await bus.publish(Placed(number=2), Placed(number=13))
            await bus.settled()
            assert bus.published(Paid) == []
    (story,) = raised.value.__notes__
    assert re.search(r'published order\.placed [0-9a-f]{8} {"number":2}', story)
    assert "shop.place raised ConnectionError: no line (again in 1 s)" in story
    assert "shop.place gave up (rejected): Reject: unlucky" in story
    assert "shop.place handled it" in story


async def test_a_handler_can_be_called_alone() -> None:
    service = shop()
    place, told = service.handlers[0].function, context(attempt=2)
    assert await place(Placed(number=2), told, Store()) == Shipped(number=2)
    assert told.published == [Paid(number=2)]
    assert (context().first_failed_at, told.first_failed_at is None) == (None, False)


async def test_what_a_resource_raises_as_it_opens_is_raised_to_the_test() -> None:
    service = Service("broken")

    @service.resource
    async def store() -> AsyncIterator[Store]:
        raise OSError("no disk")
        yield

    with pytest.raises(OSError, match="no disk"):
        async with Tester(service):
            pass


def books() -> tuple[Service, Callable[..., Any], list[int]]:
    service, runs = Service("books", store=SqliteStore(":memory:")), []

    @service.on(Placed, idempotent=True, retry=fixed(2, 1))
    async def book(placed: Placed) -> Paid:
        runs.append(placed.number)
        return Paid(number=placed.number)

    return service, book, runs


async def test_a_duplicate_that_is_not_run_is_not_told_as_handled() -> None:
    service, book, runs = books()
    async with Tester(service) as bus:
        for _ in range(2):
            await bus.publish(Placed(number=1), id="a")
            await bus.settled()
        assert runs == [1]
        assert len(bus.handled(book)) == 1
        assert bus.story().count("books.book handled it") == 1
        assert bus.story().endswith("books.book knows it: completed before, not run: order.placed a, attempt 1")


async def test_what_the_store_does_not_commit_is_not_handled_and_its_dead_letter_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def commit(_: SqliteCompletion) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SqliteCompletion, "commit", commit)
    service, book, runs = books()
    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert (runs, bus.handled(book), len(bus.dead_letters())) == ([1, 1], [], 1)
        story = bus.story()
    failed = "NotCompleted: the store did not commit: the disk is full"
    assert f"books.book raised {failed} (again in 1 s): order.placed" in story
    assert f"books.book gave up (exhausted): {failed}: order.placed" in story


async def test_a_run_that_fails_is_told_once() -> None:
    service = Service("books")

    @service.on(Placed, retry=fixed(2, 1))
    async def book(placed: Placed) -> None:
        raise ValueError("no line")

    async with Tester(service) as bus:
        await bus.publish(Placed(number=1))
        await bus.settled()
        assert bus.story().count("books.book raised ValueError: no line (again in 1 s)") == 1
        assert bus.story().count("books.book gave up") == 1
        assert bus.handled(book) == []
