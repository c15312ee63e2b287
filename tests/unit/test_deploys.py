"""What this version cannot read, or did not ask for: it waits for another version, and is given up in the end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bus import Ack, DeadLetter, Event, Queue, Retry, Service, Undecodable, clock
from bus.deploys import MOST_KEYS, stale, unreadable
from bus.discovery import named
from bus.errors import UnknownType, UnknownVersion
from bus.service import Handler
from bus.testing import Tester
from bus.topic import matches_any

from .played import Placed, Played


NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Base(Event): ...


class One(Base, type="one.happened"): ...


class Two(Base, type="two.happened"): ...


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


def handler(*sources: Any) -> Handler:
    service = Service("shop")

    @service.on(*sources, name="work")
    async def work(given: Any) -> None: ...

    return service.handlers[0]


def judged(subject: Handler, type: str, routed_by: str | None, waited: float | None = None) -> Any:
    service = Service("shop")
    service.handlers.append(subject)
    delivery = Played(type=type)
    delivery.routed_by = routed_by
    delivery.waits_since = None if waited is None else NOW - timedelta(seconds=waited)
    return stale(subject, subject.subscription(named([service])).patterns, 600)(delivery)


@pytest.mark.parametrize(
    ("error", "waited", "expected"),
    [
        (Undecodable("bad"), None, "undecodable"),
        (UnknownType("lost"), None, None),
        (UnknownVersion("new"), None, None),
        (UnknownType("lost"), 599, None),
        (UnknownType("lost"), 600, "unknown-type"),
        (UnknownVersion("new"), 601, "unknown-version"),
    ],
)
def test_what_a_deploy_may_explain_is_looked_at_again(
    error: Undecodable, waited: float | None, expected: str | None
) -> None:
    delivery = Played(attempt=2)
    delivery.waits_since = None if waited is None else NOW - timedelta(seconds=waited)
    outcome = unreadable(handler(Placed), delivery, error, 600)
    if isinstance(outcome, Retry):
        assert expected is None
        # the look costs no attempt
        assert (outcome.delay, outcome.attempt, outcome.failure.attempts) == (timedelta(seconds=10), 2, 1)
        assert outcome.waits_since == (delivery.waits_since or NOW)
    else:
        assert isinstance(outcome, DeadLetter)
        assert (outcome.failure.reason, outcome.failure.attempts) == (expected, 1)


def test_a_grace_beyond_all_dates_is_one() -> None:
    assert isinstance(unreadable(handler(Placed), Played(), UnknownType("lost"), 1e14), Retry)


def test_the_grace_begins_when_nobody_could_read_it_and_not_when_it_first_failed() -> None:
    delivery = Played(attempt=3)
    delivery.first_failed_at = NOW - timedelta(hours=2)
    outcome = unreadable(handler(Placed), delivery, UnknownVersion("new"), 600)
    assert isinstance(outcome, Retry)
    assert (outcome.waits_since, outcome.failure.first_failed_at) == (NOW, delivery.first_failed_at)


@pytest.mark.parametrize(
    ("subject", "type", "routed_by"),
    [
        (handler(Placed), "order.placed", "order.placed"),
        (handler(Base), "two.happened", "two.happened"),
        (handler("order.#"), "order.placed", "order.placed"),
        # sent to this queue alone: `to=`, a replay, a copy
        (handler("order.#"), "other", None),
        (handler(Placed), "other", None),
        # a foreign type under a key that was asked for
        (handler(Placed), "other", "order.placed"),
        # a type that was asked for under a key that was not
        (handler(Placed), "order.placed", "legacy"),
        (handler("order.*"), "order.placed", "legacy"),
        # a foreign queue that is bound to the events by somebody
        (handler(Queue("updates")), "stock.changed", "stock.changed"),
        (handler("order.#", Queue("updates")), "stock.changed", "stock.changed"),
    ],
)
def test_what_was_asked_for_or_sent_here_alone_is_never_stale(
    subject: Handler, type: str, routed_by: str | None
) -> None:
    assert judged(subject, type, routed_by) is None
    assert judged(subject, type, routed_by, waited=10_000) is None


@pytest.mark.parametrize("subject", [handler(Placed), handler(Base), handler("order.placed", "two.*.*")])
def test_what_nobody_here_asked_for_waits_for_a_newer_version_and_is_acked_and_counted_in_the_end(
    subject: Handler,
) -> None:
    first = judged(subject, "order.cancelled", "order.cancelled")
    assert isinstance(first, Retry)
    assert (first.delay, first.attempt, first.waits_since) == (timedelta(seconds=10), 1, NOW)
    assert isinstance(judged(subject, "order.cancelled", "order.cancelled", waited=599), Retry)
    assert subject.flow.counts["stale"] == 0
    assert judged(subject, "order.cancelled", "order.cancelled", waited=600) == Ack(ran=False)
    assert subject.flow.counts["stale"] == 1


def test_a_stale_binding_is_told_of_once_for_each_key_and_a_flood_of_keys_floods_nothing() -> None:
    subject = handler("order.placed")
    judge = stale(subject, ("order.placed",), 600)
    with structlog.testing.capture_logs() as logs:
        for number in (*range(MOST_KEYS + 50), 1, 2, 3):
            delivery = Played(type=f"other.{number}")
            delivery.routed_by, delivery.waits_since = f"other.{number}", NOW - timedelta(hours=1)
            assert judge(delivery) == Ack(ran=False)
    assert len(logs) == MOST_KEYS
    assert logs[0]["event"] == "stale binding"
    assert (logs[0]["service"], logs[0]["handler"], logs[0]["routing_key"]) == ("shop", "work", "other.0")
    assert "remove that binding" in logs[0]["remedy"]
    assert subject.flow.counts["stale"] == MOST_KEYS + 53


WORDS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3).map(".".join)


@given(st.lists(PATTERNS, min_size=1, max_size=3), WORDS)
def test_exactly_what_no_pattern_matches_is_stale(patterns: list[str], key: str) -> None:
    outcome = judged(handler(*patterns), key, key, waited=601)
    assert (outcome is None) == matches_any(patterns, key)


def test_a_message_says_what_it_waits_for() -> None:
    wait = judged(handler("order.placed"), "order.cancelled", "order.cancelled")
    assert (wait.failure.error_type, wait.failure.reason) == ("Unasked", "failed")
    assert "'order.cancelled' matches nothing that shop.work subscribes to" in wait.failure.error


async def test_a_test_sees_the_whole_grace_pass_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the clock goes again
    ran: list[Event] = []
    older, newer = Service("shop"), Service("shop")

    @older.on(One, name="work")
    async def work(one: Event) -> None:
        ran.append(one)

    newer.on(One, Two, name="work")(work)
    async with Tester(older) as bus:
        before = asyncio.get_running_loop().time()
        await bus.transport.declare([newer.handlers[0].subscription(named([newer]))])
        await bus.publish(One(), Two())
        await bus.settled()
        assert asyncio.get_running_loop().time() - before >= 600
        assert (ran, bus.dead_letters()) == ([One()], [])
