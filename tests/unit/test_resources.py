"""Resources: opened before they are needed, closed in the opposite order."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Generic, TypeVar

import pytest

from bus import ConfigurationError, Service, Settings
from bus.discovery import named
from bus.resources import Resources, called, check, declare, where
from bus.transport.memory import MemoryTransport
from bus.worker import Worker


T = TypeVar("T")
LOG: list[str] = []


class Pool: ...


class Session: ...


class Mailer: ...


class Repository(Generic[T]): ...


@pytest.fixture(autouse=True)
def _log() -> None:
    LOG.clear()


async def pool() -> AsyncIterator[Pool]:
    LOG.append("open pool")
    try:
        yield Pool()
    finally:
        LOG.append("close pool")


async def mailer(pool: Pool) -> AsyncGenerator[Mailer, None]:
    assert isinstance(pool, Pool)
    LOG.append("open mailer")
    try:
        yield Mailer()
    finally:
        LOG.append("close mailer")


async def session(pool: Pool) -> AsyncIterable[Session]:
    assert isinstance(pool, Pool)
    LOG.append("open session")
    try:
        yield Session()
    except ValueError:
        LOG.append("rollback")
        raise
    LOG.append("commit")


async def orders(session: Session, mailer: Mailer) -> AsyncIterator[Repository[int]]:
    assert isinstance(session, Session)
    assert isinstance(mailer, Mailer)
    LOG.append("open orders")
    yield Repository()
    LOG.append("close orders")


DECLARED = [
    declare(orders, "delivery"),
    declare(mailer, "worker"),
    declare(session, "delivery"),
    declare(pool, "worker"),
]


def test_a_resource_is_known_by_what_it_yields_and_needs() -> None:
    assert [resource.key for resource in DECLARED] == [Repository[int], Mailer, Session, Pool]
    assert [dict(resource.needs) for resource in DECLARED] == [
        {"session": Session, "mailer": Mailer},
        {"pool": Pool},
        {"pool": Pool},
        {},
    ]
    assert [resource.per for resource in DECLARED] == ["delivery", "worker", "delivery", "worker"]
    assert check(DECLARED, (), "shop") == []


async def test_those_of_the_worker_open_once_in_the_order_of_their_needs_whatever_order_they_are_declared_in() -> None:
    async with Resources(DECLARED, {}).opened():
        assert LOG == ["open pool", "open mailer"]
    assert LOG == ["open pool", "open mailer", "close mailer", "close pool"]


async def test_those_of_a_delivery_open_for_each_and_share_what_they_need() -> None:
    resources = Resources(DECLARED, {})
    async with resources.opened():
        seen = []
        for _ in range(2):
            LOG.clear()
            async with AsyncExitStack() as stack:
                needs = {"orders": Repository[int], "session": Session, "again": Session, "pool": Pool}
                values = await resources.values(needs, stack, [])
                assert list(values) == list(needs)
                assert values["session"] is values["again"]
                seen.append(values)
            assert LOG == ["open session", "open orders", "close orders", "commit"]
        assert seen[0]["session"] is not seen[1]["session"]
        assert seen[0]["pool"] is seen[1]["pool"]


async def test_one_of_a_delivery_sees_what_was_raised() -> None:
    resources = Resources(DECLARED, {})
    async with resources.opened():
        with pytest.raises(ValueError, match="its own"):
            async with AsyncExitStack() as stack:
                await resources.values({"session": Session}, stack, [])
                raise ValueError("its own")
    assert "rollback" in LOG
    assert "commit" not in LOG


async def test_what_opens_in_vain_closes_what_is_open() -> None:
    async def failing(mailer: Mailer) -> AsyncIterator[Session]:
        raise ConnectionError("no database")
        yield Session()

    resources = Resources([declare(failing, "worker"), *DECLARED[1:2], *DECLARED[3:]], {})
    with pytest.raises(ConnectionError):
        async with resources.opened():
            raise AssertionError("it must not come so far")
    assert LOG == ["open pool", "open mailer", "close mailer", "close pool"]


async def test_what_opens_in_vain_is_named_with_its_place_and_raises_what_it_raised() -> None:
    async def failing() -> AsyncIterator[Session]:
        raise KeyError("DATABASE_URL")
        yield Session()

    async def needing(session: Session) -> AsyncIterator[Mailer]:
        yield Mailer()

    resources = Resources([declare(needing, "delivery"), declare(failing, "delivery")], {})
    async with resources.opened(), AsyncExitStack() as stack:
        with pytest.raises(KeyError, match="DATABASE_URL") as raised:
            await resources.values({"mailer": Mailer}, stack, [])
    assert raised.value.__notes__[0] == f"while Session was opened by {where(failing)}"


async def yields_nothing() -> AsyncIterator[Pool]:
    if LOG:
        yield Pool()


async def yields_twice() -> AsyncIterator[Pool]:
    yield Pool()
    yield Pool()


async def yields_again_when_it_fails() -> AsyncIterator[Pool]:
    try:
        yield Pool()
    except ValueError:
        yield Pool()
    finally:
        LOG.append("closed")


async def test_a_resource_that_yields_nothing_is_a_mistake_that_names_it() -> None:
    told = f"{where(yields_nothing)}: it ended without a yield: a resource yields its Pool once"
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        async with Resources([declare(yields_nothing, "worker")], {}).opened():
            raise AssertionError("it must not come so far")


@pytest.mark.parametrize(
    ("function", "told", "closed"),
    [
        (yields_twice, "it yielded a second time: a resource yields its Pool once, and closes it after that", []),
        (yields_again_when_it_fails, "it yielded a second time, when an exception was raised at the first", ["closed"]),
    ],
)
async def test_a_resource_that_yields_twice_is_a_mistake_that_names_it(
    function: Any, told: str, closed: list[str]
) -> None:
    resources = Resources([declare(function, "delivery")], {})
    with pytest.raises(ConfigurationError, match=re.escape(f"{where(function)}: {told}")):
        async with AsyncExitStack() as stack:
            await resources.values({"pool": Pool}, stack, [])
            if function is yields_again_when_it_fails:
                raise ValueError("its own")
    assert list(LOG) == closed


async def ended(*services: Service) -> Worker:
    """Run services until the first has begun to consume, and return their worker when it has ended."""
    transport, stop = MemoryTransport(), asyncio.Event()
    running = Worker(
        transport, services, app="unit", events=named(services), settings=Settings(), log=lambda _, process: process
    )
    await running.run(stop, stop.set)
    return running


async def test_a_worker_ends_at_once_over_a_resource_that_yields_nothing() -> None:
    service = Service("shop")
    service.resource(yields_nothing)
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(ended(service), 5)
    assert raised.group_contains(ConfigurationError, match=r"yields_nothing \(.*: it ended without a yield")


async def test_a_resource_that_yields_twice_lets_the_neighbours_close() -> None:
    sick, slow = Service("sick"), Service("slow")
    sick.resource(yields_twice)

    @slow.resource
    async def mailer() -> AsyncIterator[Mailer]:
        yield Mailer()
        await asyncio.sleep(0.01)
        LOG.append("close mailer")

    with pytest.raises(ConfigurationError, match=r"yields_twice \(.*: it yielded a second time"):
        await ended(sick, slow)
    assert LOG == ["close mailer"]


async def test_what_is_provided_replaces_what_is_declared_and_is_neither_opened_nor_closed() -> None:
    mine = Pool()
    resources = Resources(DECLARED, {Pool: mine, Session: (fake := Session())})
    async with resources.opened(), AsyncExitStack() as stack:
        values = await resources.values({"pool": Pool, "session": Session, "orders": Repository[int]}, stack, [])
        assert values["pool"] is mine
        assert values["session"] is fake
    assert LOG == ["open mailer", "open orders", "close orders", "close mailer"]


class Missing: ...


async def needs_missing(missing: Missing) -> AsyncIterator[Pool]:
    yield Pool()


async def needs_session(session: Session) -> AsyncIterator[Pool]:
    yield Pool()


async def needs_itself(pool: Pool) -> AsyncIterator[Pool]:
    yield pool


@pytest.mark.parametrize(
    ("declared", "provided", "problems"),
    [
        ([], (), []),
        ([declare(needs_missing, "worker")], (), ["nobody provides Missing for 'missing'"]),
        ([declare(needs_missing, "worker")], (Missing,), []),
        ([declare(needs_itself, "delivery")], (), ["need each other in a circle: Pool"]),
        ([declare(needs_session, "worker"), DECLARED[2]], (), ["lives as long as the worker, Session does not"]),
        ([declare(needs_session, "delivery"), DECLARED[2]], (), ["need each other in a circle: Pool, Session"]),
        ([DECLARED[3], DECLARED[3]], (), ["two resources yield Pool"]),
        ([declare(needs_missing, "worker"), DECLARED[3]], (Missing,), ["two resources yield Pool"]),
    ],
)
def test_what_does_not_fit_together_is_told(declared: Any, provided: Any, problems: list[str]) -> None:
    found = check(declared, provided, "shop")
    assert len(found) == len(problems)
    for told, problem in zip(found, problems, strict=True):
        assert problem in told


def test_a_place_is_told_with_its_file_and_line() -> None:
    assert where(pool) == f"{__name__}.pool ({__file__}:{pool.__code__.co_firstlineno})"
    assert where(len) == "builtins.len"


@pytest.mark.parametrize(
    ("key", "name"), [(Pool, "Pool"), (Repository[int], "Repository[int]"), (int | None, "int | None")]
)
def test_a_key_reads_as_it_was_written(key: Any, name: str) -> None:
    assert called(key).endswith(name)
