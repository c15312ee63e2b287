"""Context: what a handler is told, and what it publishes with its ack."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import ConfigurationError, Context, Data, Event, Message, MessageTooLarge, RetryAfter, clock
from bus.context import until
from bus.message import derived_id


class Shipped(Event, type="order.shipped"):
    note: str = ""


class Line(Data):
    pass


class Billed(Event, type="order.billed"):
    pass


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def context(**told: Any) -> Context:
    message = Message(id="cause", type="a.b", version=1, source="/theirs", time=NOW, body=b"", correlation_id="first")
    return Context(message, subscription="shop.work", source="/app/shop", limit=200, **told)


def test_a_handler_is_told_which_attempt_it_is() -> None:
    assert (context().attempt, context().first_failed_at) == (1, None)
    told = context(attempt=3, first_failed_at=NOW)
    assert (told.attempt, told.first_failed_at, told.message.id) == (3, NOW, "cause")


def test_what_is_published_is_kept_in_its_order_with_its_cause() -> None:
    told = context()
    ids = [*told.publish(Shipped(), Billed()), *told.publish(Shipped())]
    assert [outgoing.message.type for outgoing in told.outgoing] == ["order.shipped", "order.billed", "order.shipped"]
    assert [outgoing.message.id for outgoing in told.outgoing] == ids
    for outgoing in told.outgoing:
        message = outgoing.message
        assert (message.source, message.causation_id, message.correlation_id) == ("/app/shop", "cause", "first")
        assert (outgoing.delay, outgoing.required, outgoing.address) == (timedelta(), False, None)


def test_a_repeated_run_publishes_the_same_ids() -> None:
    assert context().publish(Shipped(), Shipped()) == context(attempt=2).publish(Shipped(note="other"), Shipped())
    assert context().publish(Shipped(), Billed()) == [
        derived_id(context().message, "shop.work", 0, "order.shipped"),
        derived_id(context().message, "shop.work", 1, "order.billed"),
    ]


def test_how_it_is_published_is_kept_with_it() -> None:
    told = context()
    told.publish(Shipped(), delay=2, required=True, to="theirs", headers={"tenant": "7"})
    (outgoing,) = told.outgoing
    assert (outgoing.delay, outgoing.required, outgoing.address) == (timedelta(seconds=2), True, "theirs")
    assert outgoing.message.headers == {"tenant": "7"}


def test_of_events_that_do_not_all_fit_none_is_published() -> None:
    told = context()
    with pytest.raises(MessageTooLarge):
        told.publish(Shipped(), Shipped(note="x" * 200))
    assert told.outgoing == ()
    assert told.publish() == []


@pytest.mark.parametrize(
    ("delay", "at", "wait"),
    [
        (0, None, 0),
        (-5, None, 0),
        (timedelta(), None, 0),
        (0.25, None, 0.25),
        (timedelta(hours=1), None, 3600),
        (timedelta(days=310), None, 310 * 86_400),
        (0, NOW, 0),
        (0, NOW - timedelta(days=1), 0),
        (0, NOW + timedelta(minutes=2), 120),
    ],
)
def test_how_long_to_wait(
    delay: float | timedelta, at: datetime | None, wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)
    assert until(delay, at) == timedelta(seconds=wait)


@pytest.mark.parametrize(
    ("delay", "at", "told"),
    [
        (1, NOW, "not both"),
        (0, datetime(2026, 1, 1), r"at=datetime\..*\); it is a datetime with a time zone"),  # noqa: DTZ001
        (0, NOW.date(), r"at=datetime\.date\(.*\); it is a datetime with a time zone"),
        (0, 3, "at=3; it is a datetime"),
        ("5m", None, "delay='5m'; it is seconds as a number, or a timedelta, up to 310 days"),
        (float("nan"), None, "delay=nan; it is seconds"),
        (float("inf"), None, "delay=inf; it is seconds"),
        (timedelta(days=310, seconds=1), None, "310 days"),
        (0, NOW + timedelta(days=311), "310 days"),
    ],
)
def test_a_wait_that_cannot_be_is_refused(delay: Any, at: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)
    with pytest.raises(ConfigurationError, match=told):
        until(delay, at)


@pytest.mark.parametrize("delay", ["5m", None, float("nan"), timedelta(days=311)])
def test_a_retry_is_asked_for_after_a_time(delay: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"RetryAfter.* 310 days"):
        RetryAfter(delay)


def test_what_is_no_time_is_told_as_it_was_given() -> None:
    with pytest.raises(TypeError, match="'1h' is no span of time: give seconds as a number, or a timedelta"):
        clock.span("1h")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([Shipped()], r"takes events, one by one, and it got a list: write publish\(\*events\)"),
        ((Shipped(),), r"got a tuple: write publish\(\*events\)"),
        ({"note": "x"}, "got a dict: make an event of it"),
        ("order.shipped", "got a str: make an event of it"),
        (None, "got a NoneType: make an event of it"),
        (Shipped, "it got a class: make one of it"),
        (Line(), "got a Line, which is Data, .*: subclass Event"),
        (context().message, "got a Message: make an event of it"),
        (Event(), "Event has no type="),
    ],
    ids=repr,
)
def test_what_is_no_event_is_told_and_nothing_is_published(given: Any, told: str) -> None:
    handed = context()
    with pytest.raises(ConfigurationError, match=told):
        handed.publish(Shipped(), given)
    assert handed.outgoing == ()
