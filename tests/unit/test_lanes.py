"""Lanes, without a worker: which delivery may run when, and what is known of those that were lost."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import Ack, Failure, Release, Retry
from bus.errors import DeliveryLost
from bus.lanes import RELEASED, Held, Lanes

from .played import Played


FAILED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def arrived(id: str, key: Any = "a", **changed: Any) -> Played:
    """Return a delivery; its key is its correlation id."""
    return Played(id=id, correlation_id=key, **changed)


def again(delay: float, attempt: int = 2) -> Retry:
    failure = Failure(
        service="s",
        handler="h",
        reason="failed",
        error_type="E",
        error="",
        traceback="",
        attempts=1,
        first_failed_at=FAILED_AT,
        last_failed_at=FAILED_AT,
        worker="w",
    )
    return Retry(timedelta(seconds=delay), failure, attempt)


def lanes(window: int = 10) -> Lanes:
    return Lanes("shop.work", lambda message: message.correlation_id, window, lambda: None)


def filled(made: Lanes, *deliveries: Played) -> list[Played]:
    for delivery in deliveries:
        made.put(delivery)
    return list(deliveries)


def ready(made: Lanes) -> list[str]:
    return [lane.waiting[0].message.id for lane in made.ready]


def begun(made: Lanes) -> Held:
    held = made.begin(made.ready.popleft())
    assert held is not None
    return held


def lose(*deliveries: Played) -> None:
    for delivery in deliveries:
        delivery.lost = True


async def finish(made: Lanes, outcome: Any = None) -> Held:
    """Run what is ready first to its end."""
    held = begun(made)
    await held.settle(outcome or Ack())
    made.end(held)
    return held


async def test_a_lane_runs_one_at_a_time_in_the_order_of_arrival() -> None:
    made = lanes()
    filled(made, arrived("1"), arrived("2"), arrived("3", "b"))
    assert ready(made) == ["1", "3"]
    first, other = begun(made), begun(made)
    assert (ready(made), made.running) == ([], 2)
    await first.settle(Ack())
    made.end(first)
    assert (ready(made), made.running) == (["2"], 1)
    made.end(other)


async def test_what_has_no_key_has_a_lane_of_its_own() -> None:
    made = lanes()
    filled(made, arrived("1", None), arrived("2", None), arrived("3"), arrived("4"))
    assert ready(made) == ["1", "2", "3"]


async def test_a_retry_is_not_told_to_the_broker_and_waits_at_the_head_of_its_lane() -> None:
    made = lanes()
    (failing, _, _) = filled(made, arrived("1"), arrived("2"), arrived("3", "b"))
    held = await finish(made, again(0.02))
    assert (failing.settled, ready(made)) == ([], ["3"])
    assert (held.attempt, held.first_failed_at) == (2, FAILED_AT)
    await asyncio.sleep(0.03)
    assert ready(made) == ["3", "1"]
    await finish(made)
    await finish(made)
    assert (failing.settled, ready(made)) == ([Ack()], ["2"])


async def test_what_is_released_keeps_its_place_and_its_attempt() -> None:
    made = lanes()
    (released, _) = filled(made, arrived("1"), arrived("2"))
    held = await finish(made, Release())
    assert (released.settled, ready(made), held.attempt) == ([], [], 1)
    assert held.due == pytest.approx(asyncio.get_running_loop().time() + RELEASED, abs=0.5)
    made.close()


async def test_what_was_lost_does_not_run_and_comes_again_in_its_order() -> None:
    made = lanes()
    lose(*filled(made, arrived("1"), arrived("2"), arrived("3", "b")))
    filled(made, arrived("1", redelivered=1), arrived("2", redelivered=1), arrived("3", "b", redelivered=1))
    for expected in ("1", "3", "2"):
        assert (await finish(made)).message.id == expected
    assert (ready(made), made.oldest) == ([], None)


async def test_a_lane_that_was_lost_before_it_began_does_not_begin() -> None:
    made = lanes()
    lose(*filled(made, arrived("1")))
    assert made.begin(made.ready.popleft()) is None
    assert (made.running, made.oldest) == (0, None)


async def test_what_comes_again_and_what_is_later_wait_for_the_run_that_was_lost() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    held = begun(made)
    lose(before)
    filled(made, arrived("1", redelivered=1), arrived("2", redelivered=1))
    assert ready(made) == []
    before.refuse.append(DeliveryLost())
    with pytest.raises(DeliveryLost):
        await held.settle(Ack())
    made.end(held)
    assert ready(made) == ["1"]


async def test_what_comes_again_during_its_run_goes_on_with_what_the_run_came_to() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    held = begun(made)
    lose(before)
    filled(made, arrived("1", redelivered=1))
    await held.settle(again(0.02, 4))
    made.end(held)
    assert ready(made) == []
    await asyncio.sleep(0.03)
    assert begun(made).attempt == 4


async def test_a_lane_that_waited_goes_on_with_its_attempt_and_its_time_when_it_comes_again() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    due = (await finish(made, again(0.05, 3))).due
    lose(before)
    filled(made, arrived("1", redelivered=1), arrived("2", redelivered=1))
    assert ready(made) == []
    await asyncio.sleep(0.06)
    held = begun(made)
    assert (held.message.id, held.attempt, held.first_failed_at, held.due) == ("1", 3, FAILED_AT, due)


async def test_what_was_ready_as_it_was_lost_goes_on_with_its_attempt_too() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    await finish(made, again(0, 3))
    assert ready(made) == ["1"]
    lose(before)
    filled(made, arrived("1", redelivered=1))
    assert begun(made).attempt == 3


async def test_a_failure_that_was_lost_is_known_when_its_message_comes_again() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    held = begun(made)
    lose(before)
    await held.settle(again(0, 2))
    made.end(held)
    filled(made, arrived("1", redelivered=1))
    assert begun(made).attempt == 2


async def test_what_is_known_of_a_message_is_not_taken_for_another_of_its_id_and_another_source() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    await finish(made, again(5, 3))
    lose(before)
    made.sweep()
    filled(made, arrived("1", source="/legacy", redelivered=1))
    assert ready(made) == ["1"]
    assert begun(made).attempt == 1


async def test_a_replayed_message_starts_at_its_first_attempt_again() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1"))
    await finish(made, again(5, 3))
    lose(before)
    made.sweep()
    filled(made, arrived("1"))
    assert begun(made).attempt == 1


async def test_a_made_up_id_tells_nothing_about_an_earlier_run() -> None:
    made = lanes()
    (before,) = filled(made, arrived("1", id_made_up=True))
    held = begun(made)
    lose(before)
    filled(made, arrived("1", redelivered=1, id_made_up=True))
    assert not held.settled
    assert ready(made) == []  # but equal keys do not run side by side
    made.end(held)
    assert ready(made) == ["1"]


async def test_what_comes_again_without_an_id_goes_on_where_its_bytes_were_and_its_equals_start_anew() -> None:
    made = lanes()
    lost = filled(made, *(arrived(str(number), body=b"same", id_made_up=True) for number in range(2)))
    await finish(made, again(0, 3))
    lose(*lost)
    made.sweep()
    filled(made, *(arrived(f"again {number}", body=b"same", redelivered=1, id_made_up=True) for number in range(2)))
    assert (await finish(made)).attempt == 3
    assert (await finish(made)).attempt == 1


@pytest.mark.parametrize("other", [{"body": b"another"}, {"type": "order.shipped"}, {"id_made_up": False}])
async def test_what_is_known_of_a_message_without_an_id_is_not_taken_for_what_carries_something_else(
    other: dict[str, Any],
) -> None:
    made = lanes()
    (before,) = filled(made, arrived("1", body=b"same", id_made_up=True))
    await finish(made, again(5, 3))
    lose(before)
    made.sweep()
    filled(made, arrived("1", **({"body": b"same", "id_made_up": True, "redelivered": 1} | other)))
    assert begun(made).attempt == 1


async def test_a_full_window_is_told_once_and_so_is_that_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tidegate")
    made = lanes(window=3)
    filled(made, arrived("1"), arrived("2"), arrived("3", "b"))
    assert caplog.text == ""
    await finish(made, again(0.02))
    await finish(made, again(0.02))
    (told,) = caplog.records
    for part in ("handler pauses", "handler=shop.work", "held=3", "oldest_key=a"):
        assert part in told.getMessage()
    await asyncio.sleep(0.03)
    await finish(made, again(60))
    assert len(caplog.records) == 1
    await finish(made)
    assert [record.getMessage() for record in caplog.records[1:]] == ["event=handler goes on handler=shop.work held=2"]
    made.close()


async def test_lanes_that_are_empty_are_forgotten() -> None:
    made = lanes()
    filled(made, *(arrived(str(number), str(number)) for number in range(5)))
    for _ in range(5):
        await finish(made)
    assert made._lanes == {}
    assert (made.oldest, made.running, made._taken) == (None, 0, 0)
