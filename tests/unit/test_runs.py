"""What is known of runs whose outcome could not be settled."""

from __future__ import annotations

import asyncio

import pytest

from bus import Ack
from bus.runs import Runs

from .played import Played


async def test_what_was_held_is_forgotten_as_all_that_comes_not_again() -> None:
    runs, loop = Runs(), asyncio.get_running_loop()
    runs.end(("/t", "1", 1), Ack(), held=10)
    runs.begin(("/t", "2", 1))
    late = loop.time() + 11
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: late)
        runs.begin(("/t", "2", 1))
        assert await runs.earlier(("/t", "1", 1)) == Ack()
        patch.setattr(loop, "time", lambda: late + Runs.KEPT + 1)
        runs.begin(("/t", "2", 1))
        assert await runs.earlier(("/t", "1", 1)) is None


async def test_only_so_many_lost_outcomes_are_kept() -> None:
    runs = Runs()
    for number in range(Runs.MOST + 10):
        runs.begin(("/t", str(number), 1))
        runs.end(("/t", str(number), 1), Ack())
    assert await runs.earlier(("/t", "0", 1)) is None
    assert await runs.earlier(("/t", str(Runs.MOST + 9), 1)) == Ack()


async def test_a_lost_outcome_is_forgotten_when_another_worker_may_have_settled_its_message() -> None:
    runs, loop = Runs(), asyncio.get_running_loop()
    runs.end(("/t", "1", 1), Ack())
    runs.begin(("/t", "2", 1))
    late = loop.time() + Runs.KEPT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: late + 1)
        assert await runs.earlier(("/t", "1", 1)) == Ack()  # nothing else came: it may have been paused
        runs.begin(("/t", "3", 1))
        assert await runs.earlier(("/t", "1", 1)) is None
        assert not runs._unsettled


async def test_an_outcome_is_kept_while_its_message_waits_here_and_for_its_time_after_that_is_lost() -> None:
    runs, loop = Runs(), asyncio.get_running_loop()
    # what was tried again in place comes again by its first attempt
    again = Played(redelivered=1, id="1")
    runs.end(("/t", "1", 3, None), Ack())
    began = loop.time()

    def begin_after(seconds: float) -> None:
        patch.setattr(loop, "time", lambda: began + seconds)
        runs.begin(("/t", str(seconds), 1, None))

    with pytest.MonkeyPatch.context() as patch:
        begin_after(0)
        runs.here = lambda: [again]
        begin_after(Runs.KEPT - 1)
        begin_after(10 * Runs.KEPT)
        again.lost = True
        begin_after(20 * Runs.KEPT)
        begin_after(21 * Runs.KEPT - 1)
        assert await runs.earlier(("/t", "1", 3, None)) == Ack()
        begin_after(21 * Runs.KEPT + 1)
        assert await runs.earlier(("/t", "1", 3, None)) is None


async def test_what_came_again_and_was_lost_again_is_waited_for_from_then_on() -> None:
    runs, loop = Runs(), asyncio.get_running_loop()
    again = Played(redelivered=1, id="1")
    runs.end(("/t", "1", 1, None), Ack())
    began = loop.time()
    with pytest.MonkeyPatch.context() as patch:
        for seconds in range(int(Runs.KEPT) + 10):
            if seconds == Runs.KEPT / 2:
                runs.here = lambda: [again]
            again.lost = seconds > Runs.KEPT - 10
            patch.setattr(loop, "time", lambda after=seconds: began + after)
            runs.begin(("/t", f"other {seconds}", 1, None))
    assert await runs.earlier(("/t", "1", 1, None)) == Ack()
