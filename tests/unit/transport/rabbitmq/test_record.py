"""The fold of the record: what stands, what was pruned, and what anybody may write into it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import BusUnavailable
from bus.transport.rabbitmq.record import (
    BINDING,
    PRUNED,
    PRUNING,
    QUEUE,
    Declaration,
    Declared,
    Fold,
    Item,
    Mark,
    Record,
    _read_entry,
)
from bus.transport.rabbitmq.stream import Streams
from bus.transport.rabbitmq.topology import Names, Queue


AT = datetime(2026, 11, 24, tzinfo=UTC)
BOUND = Item(BINDING, "stock.work", "events", "order.placed")
WORK = Item(QUEUE, "stock.work")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
NAMES = (
    "record",
    "token",
    "at",
    "app",
    "service",
    "version",
    "worker",
    "queues",
    "steps",
    "exchanges",
    "items",
    "details",
)


def declared(offset: int, *keys: str, app: str = "shop", service: str = "stock") -> Declared:
    queue = Queue(f"{service}.work", {"x-queue-type": "quorum"}, tuple(("events", key) for key in keys))
    return Declared(Declaration(app, service, (queue,)), "1.0", "host:1", AT, offset)


def mark(offset: int, kind: str, *items: Item, begun: int | None = None) -> Mark:
    return Mark(kind, "shop", "ada@host", AT, items, {} if begun is None else {PRUNING: begun}, offset)


def folded(*entries: Declared | Mark) -> Fold:
    fold = Fold()
    for entry in entries:
        fold.add(entry)
    return fold


def test_what_any_version_declared_stands_until_it_is_pruned() -> None:
    fold = folded(declared(0, "order.placed"), declared(1, "order.shipped"))
    shipped = Item(BINDING, "stock.work", "events", "order.shipped")
    assert fold.standing("shop").keys() == {WORK, BOUND, shipped}
    fold.add(mark(2, PRUNED, BOUND))
    assert fold.standing("shop").keys() == {WORK, shipped}
    fold.add(declared(3, "order.placed"))
    assert fold.standing("shop")[BOUND].offset == 3


def test_a_queue_takes_its_bindings_with_it() -> None:
    assert folded(declared(0, "order.placed"), mark(1, PRUNED, WORK)).standing("shop") == {}


def test_what_is_to_be_pruned_stands_and_is_known_until_the_prune_says_what_is_gone() -> None:
    fold = folded(declared(0, "order.placed"), mark(1, PRUNING, WORK, BOUND))
    assert fold.standing("shop").keys() == {WORK, BOUND}
    assert fold.pruned_since(0) == {WORK, BOUND}
    fold.add(mark(2, PRUNED, BOUND, begun=1))
    assert fold.pruned_since(0) == {BOUND}
    assert fold.pruned_since(3) == frozenset()


def test_what_was_declared_again_was_not_pruned() -> None:
    fold = folded(declared(0, "order.placed"), mark(1, PRUNED, BOUND), declared(2, "order.placed", "order.shipped"))
    assert fold.pruned_since(0) == frozenset()


def test_a_declaration_stands_as_the_services_last_one_of_which_nothing_was_pruned_since() -> None:
    first, second = declared(0, "order.placed"), declared(1, "order.shipped")
    fold = folded(first)
    assert fold.stands(first.declaration)
    fold.add(second)
    assert not fold.stands(first.declaration)
    assert fold.stands(second.declaration)
    fold.add(mark(2, PRUNING, WORK))
    assert not fold.stands(second.declaration)
    fold.add(replace(second, offset=3))
    assert fold.stands(second.declaration)


def test_apps_and_services_are_told_apart() -> None:
    fold = folded(declared(0, "a"), declared(1, "b", service="bill"), declared(2, "c", app="other"))
    assert fold.services("shop") == ["stock", "bill"]
    assert fold.last("shop", "stock") == declared(0, "a")
    assert {by.declaration.app for by in fold.others("shop").values()} == {"other"}


def test_an_entry_that_was_taken_before_changes_nothing() -> None:
    fold = folded(declared(0, "order.placed"), mark(1, PRUNED, BOUND))
    fold.add(declared(0, "order.placed"))
    assert BOUND not in fold.standing("shop")


def test_equal_declarations_are_equal_whatever_their_order() -> None:
    one, other = Queue("a", {}, (("events", "x"), ("events", "y"))), Queue("b")
    turned = Queue("a", {}, (("events", "y"), ("events", "x")))
    assert Declaration("shop", "s", (one, other)).digest == Declaration("shop", "s", (other, turned)).digest


def test_what_is_written_is_read_as_it_was() -> None:
    entry = declared(7, "order.placed")
    told = {"record": "declared", "token": "t", "version": "1.0", "worker": "host:1", "at": AT.isoformat()}
    token, read = _read_entry(orjson.dumps({**told, **entry.declaration.as_json()}), 7)
    assert (token, read) == ("t", entry)


@given(st.binary() | st.dictionaries(st.sampled_from(NAMES), VALUES | st.sampled_from(["declared", PRUNED])).map(repr))
def test_bytes_of_any_kind_are_no_entry(body: bytes | str) -> None:
    _read_entry(body if isinstance(body, bytes) else body.encode("utf-8", "replace"), 0)


@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=len(NAMES)),
    st.sampled_from(["declared", PRUNED, PRUNING, ""]),
)
def test_json_of_any_kind_folds(told: dict[str, object], kind: str) -> None:
    try:
        body = orjson.dumps({**told, "record": kind})
    except TypeError:
        return  # not JSON, so nobody can have written it
    _, read = _read_entry(body, 0)
    if read is not None:
        folded(read).standing("shop")


async def test_an_entry_that_cannot_be_read_again_was_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stored(self: Streams, parcels: object) -> None: ...

    async def nothing(self: Record) -> Fold:
        return Fold()

    monkeypatch.setattr(Streams, "store", stored)
    monkeypatch.setattr(Record, "read", nothing)
    record = Record(Streams([], 1.0), Names())
    with pytest.raises(BusUnavailable, match=r"noted in tidegate\.topology cannot be read there: run it again"):
        await record.mark(PRUNING, "shop", "me")
