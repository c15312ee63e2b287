"""What a test provides in place of its services' own resources, and which slips are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeVar

import pytest

from bus import Bus, ConfigurationError, Context, Service, SqliteStore, SqliteTransaction, Store
from bus.testing import Tester

from .played import Placed


T = TypeVar("T")


class Pool: ...


class Rows(dict[str, int]): ...


class Clock(Protocol):
    def now(self) -> float: ...


class Fake:
    """Stands in for a Pool, and is none."""


async def pool() -> AsyncIterator[Pool]:
    yield Pool()


async def work(placed: Placed, pool: Pool, rows: Rows, clock: Clock, seconds: float, context: Context) -> None: ...


async def write(placed: Placed, transaction: SqliteTransaction) -> None: ...


NEEDED: dict[Any, Any] = {Rows: Rows(), Clock: object(), float: 0.5}


def hosting(provided: Any) -> Tester:
    service = Service("shop", store=SqliteStore(":memory:"))
    service.resource(pool)
    service.on(Placed)(work)
    service.on(Placed, idempotent=True)(write)
    return Tester(service, resources=provided)


@pytest.mark.parametrize(
    ("provided", "told"),
    [
        (
            {SqliteStore: SqliteStore(":memory:")},
            "{SqliteStore: …}: .* by the key Store: use resources={Store",
        ),
        ({Store: "x"}, "{Store: …}: 'x' is no store"),
        ({Store: None}, "{Store: …}: None is no store"),
        ({Store: SqliteStore}, "{Store: …}: <class .* is no store"),
        ({SqliteTransaction: object()}, "from the store: replace that, resources={Store: SqliteStore"),
        ({Context: object()}, "each delivery has its own"),
        (
            {Fake: Fake()},
            "{Fake: …}: no service here .*; they have Clock, Pool, Rows, SqliteTransaction, Store, float. Leave",
        ),
        ({"Pool": Pool()}, "{'Pool': …}: no service here"),
        ({Bus: object()}, "{Bus: …}: no service here"),
        (
            {type("Pool", (), {"__module__": "fakes"}): Fake()},
            "asks for the Pool of fakes, but for that of .*test_provided",
        ),
        ({Pool: Pool}, "Pool is a class, and an instance is wanted"),
        ({Pool: Fake}, r"Fake is a class, and an instance is wanted: Fake\(…\)"),
        ({Pool: "x"}, "{Pool: …}: 'x' is no Pool: give one"),
        ({Pool: None}, "{Pool: …}: None is no Pool"),
        ({float: "x"}, "{float: …}: 'x' is no float"),
        ([Pool()], "it is a dict of what replaces resources, by their types"),
    ],
)
def test_what_would_replace_nothing_or_cannot_be_is_refused(provided: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told.replace("{", r"\{")):
        hosting(provided if isinstance(provided, list) else NEEDED | provided)


@pytest.mark.parametrize(
    "provided",
    [{}, {Store: SqliteStore(":memory:")}, {Pool: Pool()}, {Pool: Fake()}, {Rows: {}}, {Clock: "x"}, {float: 1}],
)
def test_a_fake_need_not_inherit_from_what_it_replaces(provided: dict[Any, Any]) -> None:
    hosting(NEEDED | provided)


def test_every_slip_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        hosting(NEEDED | {SqliteStore: SqliteStore(":memory:"), Pool: "x"})
    assert len(refused.value.problems) == 2


def test_what_any_of_the_services_asks_for_may_be_provided() -> None:
    one, other = Service("one"), Service("other")
    one.resource(pool)
    Tester(one, other, resources={Pool: Fake()})
    with pytest.raises(ConfigurationError, match="they have no resources"):
        Tester(other, resources={Pool: Fake()})


def test_a_store_is_refused_where_no_service_has_or_wants_one() -> None:
    with pytest.raises(ConfigurationError, match=r"{Store: …}: no service here has a store, or .*: leave it out$"):
        Tester(Service("one"), Service("other"), resources={Store: SqliteStore(":memory:")})
    wants = Service("wants")
    wants.on(Placed, idempotent=True)(write)
    for one in (wants, Service("has", store=SqliteStore(":memory:"))):
        Tester(one, Service("other"), resources={Store: SqliteStore(":memory:")})
