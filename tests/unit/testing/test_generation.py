"""A generation: once abandoned, none of its code runs."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import pytest

from bus.testing.generation import Generation, generations


@pytest.fixture
def log() -> list[str]:
    return []


async def turns() -> None:
    """Let the loop go round often enough for whatever is ready to run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def abandoned(work: Coroutine[Any, Any, None], log: list[str], *, after: float = 0) -> list[str]:
    """Return what was logged by the work, its tasks and its timers after it was abandoned."""
    with generations():
        generation = Generation()
        generation.start(work)
        await turns()
        before = len(log)
        generation.abandon()
        await asyncio.sleep(after)
        await turns()
        seen = log[before:]
        await generation.dispose(30)
        gc.collect()
        return seen


async def test_no_finally_and_no_except_runs(log: list[str]) -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(0.01)
            log.append("went on")
        except asyncio.CancelledError:
            log.append("caught")
            raise
        finally:
            log.append("cleaned up")

    assert await abandoned(work(), log, after=0.02) == []


async def test_child_tasks_and_task_groups_are_abandoned_too(log: list[str]) -> None:
    async def child() -> None:
        try:
            await asyncio.sleep(0.01)
        finally:
            log.append("child")

    async def work() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child())
                await asyncio.gather(child(), asyncio.create_task(child()))
        finally:
            log.append("parent")

    assert await abandoned(work(), log, after=0.02) == []


async def test_a_timeout_that_was_running_does_not_wake_the_abandoned(log: list[str]) -> None:
    async def work() -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            log.append("timed out")

    assert await abandoned(work(), log, after=0.02) == []


async def test_scopes_and_groups_of_anyio_are_abandoned_too(log: list[str]) -> None:
    async def work() -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 30)
                with anyio.move_on_after(0.01):
                    await anyio.sleep(30)
                log.append("went on")
        finally:
            log.append("cleaned up")

    assert await abandoned(work(), log, after=0.02) == []


async def test_an_async_generator_is_not_resumed(log: list[str]) -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            log.append("generator")

    async def work() -> None:
        async for _ in numbers():
            await asyncio.sleep(0.01)

    assert await abandoned(work(), log, after=0.02) == []


async def test_a_task_that_had_not_started_never_starts(log: list[str]) -> None:
    async def child() -> None:
        log.append("child")

    async def work() -> None:
        task = asyncio.create_task(child())
        await asyncio.sleep(30)
        await task

    with generations():
        generation = Generation()
        generation.start(work())
        await asyncio.sleep(0)
        generation.abandon()
        await turns()
        await generation.dispose(30)
    assert log == []


async def test_a_callback_of_the_dead_starts_no_task(log: list[str]) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def child() -> None:
        log.append("child")

    async def work() -> None:
        asyncio.get_running_loop().call_later(0.01, lambda: tasks.append(asyncio.create_task(child())))
        await asyncio.sleep(30)

    assert await abandoned(work(), log, after=0.02) == []
    assert len(tasks) == 1


async def test_a_task_cancelled_before_its_first_step_ends_quietly(log: list[str]) -> None:
    async def child() -> None:
        log.append("child")

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
            raise LookupError

    with generations(), pytest.raises(ExceptionGroup):
        await Generation().start(work())
    gc.collect()  # a coroutine that was never awaited would warn here
    assert log == []


async def test_clean_up_that_awaits_at_every_level_is_closed_for_good(log: list[str]) -> None:
    async def work() -> None:
        try:
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(1)
                log.append("inner")
        finally:
            await asyncio.sleep(1)
            log.append("outer")

    coroutine = work()
    assert await abandoned(coroutine, log) == []
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert log == []


async def test_clean_up_that_awaits_in_what_is_awaited_is_closed_for_good_and_is_no_failure(log: list[str]) -> None:
    async def opens() -> None:
        try:
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(1)
        finally:
            await asyncio.sleep(1)

    async def work() -> None:
        try:
            await opening
        except Exception as error:
            log.append(f"failed: {error}")

    opening = opens()
    assert await abandoned(work(), log) == []
    assert inspect.getcoroutinestate(opening) == inspect.CORO_CLOSED
    assert log == []


async def test_what_a_task_that_had_not_started_was_to_await_is_closed_too(log: list[str]) -> None:
    async def runs(given: Coroutine[Any, Any, None]) -> None:
        await given

    async def work() -> None:
        task = asyncio.create_task(runs(asyncio.sleep(1)))
        await asyncio.sleep(30)
        await task

    with generations():
        generation = Generation()
        generation.start(work())
        await asyncio.sleep(0)
        generation.abandon()
        await turns()
        await generation.dispose(30)
    gc.collect()  # a coroutine that was never awaited would warn here


async def test_tasks_outside_a_generation_are_left_alone(log: list[str]) -> None:
    async def neighbour() -> None:
        await turns()
        log.append("neighbour")

    with generations():
        generation = Generation()
        generation.start(asyncio.sleep(30))
        task = asyncio.create_task(neighbour())
        generation.abandon()
        await task
        await generation.dispose(30)
    assert log == ["neighbour"]


async def test_a_living_generation_returns_raises_and_is_cancelled_like_any_task() -> None:
    async def returns() -> int:
        await asyncio.sleep(0)
        return 7

    async def raises() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    async def work() -> None:
        assert await asyncio.create_task(returns(), name="seven") == 7
        with pytest.raises(LookupError, match="gone"):
            await asyncio.create_task(raises())
        task = asyncio.create_task(asyncio.sleep(30), name="sleeper")
        await asyncio.sleep(0)
        assert task.get_name() == "sleeper"
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    with generations():
        await Generation().start(work())


async def test_the_task_factory_of_the_loop_is_put_back() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    with generations():
        assert loop.get_task_factory() is not before
    assert loop.get_task_factory() is before
