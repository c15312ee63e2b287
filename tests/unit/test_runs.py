"""What is known of runs whose outcome could not be settled."""

from __future__ import annotations

import asyncio

import pytest

from bus import Ack
from bus.runs import Runs


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
