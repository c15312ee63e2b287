"""One timer for all runs of a handler."""

from __future__ import annotations

import asyncio

import pytest

from bus.deadline import Deadline


async def test_what_ends_in_time_is_returned_and_leaves_no_cancellation_behind() -> None:
    deadline = Deadline(0.01)
    assert await deadline.run(asyncio.sleep(0, "done")) == "done"
    await asyncio.sleep(0.03)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_what_an_overdue_run_leaves_is_a_task_that_can_go_on() -> None:
    deadline = Deadline(0.01)
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"timeout of 0\.01 s"):
            await deadline.run(asyncio.sleep(60))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await deadline.run(asyncio.sleep(0, "done")) == "done"


async def test_each_run_has_the_whole_time_whatever_others_take() -> None:
    deadline = Deadline(0.05)
    loop = asyncio.get_running_loop()

    async def overdue(after: float) -> float:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(TimeoutError):
            await deadline.run(asyncio.sleep(60))
        return loop.time() - began

    took = await asyncio.gather(*(overdue(number * 0.02) for number in range(6)))
    assert all(time >= 0.05 for time in took)


async def test_a_run_that_does_not_end_holds_up_no_other_timeout() -> None:
    deadline, go = Deadline(0.01), asyncio.Event()

    async def stubborn() -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    running = asyncio.ensure_future(deadline.run(stubborn()))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await deadline.run(asyncio.sleep(60))
    go.set()
    with pytest.raises(TimeoutError):
        await running


async def test_an_error_of_the_work_is_its_own() -> None:
    async def failing() -> None:
        raise TimeoutError("the bank")

    with pytest.raises(TimeoutError, match="the bank"):
        await Deadline(60).run(failing())


async def test_a_cancellation_from_outside_goes_on_as_one() -> None:
    task = asyncio.ensure_future(Deadline(60).run(asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_beside_the_timeout_goes_on_as_one() -> None:
    deadline = Deadline(0.01)
    told: list[int] = []

    async def both() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.sleep(60)

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await deadline.run(both())
        except asyncio.CancelledError:
            told.append(task.cancelling())
            raise

    task = asyncio.ensure_future(watched())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == [1]
