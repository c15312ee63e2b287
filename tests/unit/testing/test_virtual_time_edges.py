"""Virtual time at its edges: far ahead, many times over, and beside threads that start, idle and end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import anyio.to_thread
import pytest

from bus import Event, Service, immediate
from bus.testing import Tester
from bus.testing.virtual_time import TURNS, VirtualTime


class Asked(Event, type="asked"):
    pass


async def failures(work: Callable[[], Awaitable[object]], timeout: float) -> list[str | None]:
    """Return what the handler failed of that awaits `work`."""
    service = Service("edge")

    @service.on(Asked, timeout=timeout, retry=immediate(1))
    async def answer(asked: Asked) -> None:
        await work()

    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled()
        return [letter.failure.error_type for letter in bus.dead_letters()]


async def test_the_clock_moves_on_after_the_longest_delay_there_is() -> None:
    loop = asyncio.get_running_loop()
    async with Tester(Service("empty")) as bus:
        before = loop.time()
        await bus.advance(timedelta(days=310))
        await bus.advance(1)
        assert loop.time() - before == pytest.approx(310 * 86_400 + 1, abs=0.01)


async def test_a_machine_that_has_been_up_for_years_has_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real_time = loop.time
    monkeypatch.setattr(loop, "time", lambda: real_time() + 3 * 365 * 86_400)
    async with Tester(Service("empty")) as bus:
        before = loop.time()
        await bus.advance(1)
        assert loop.time() - before == pytest.approx(1, abs=0.01)


async def test_a_session_of_many_testers_on_one_loop_keeps_its_clock() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(2000):
        with VirtualTime(lambda: False).installed():
            pass
    before = loop.time()
    await asyncio.sleep(0)
    assert loop.time() >= before


async def test_the_skips_of_one_tester_after_another_add_up() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    for _ in range(3):
        async with Tester(Service("empty")) as bus:
            await bus.advance(1000)
    assert loop.time() - before == pytest.approx(3000, abs=60)


async def test_a_thread_of_anyio_that_was_idle_before_takes_real_time_when_it_works() -> None:
    await anyio.to_thread.run_sync(int)
    assert await failures(lambda: anyio.to_thread.run_sync(time.sleep, 0.3), timeout=10) == []


async def test_an_idle_thread_of_an_executor_of_ones_own_holds_nothing_up() -> None:
    loop = asyncio.get_running_loop()

    async def works_and_hangs() -> None:
        await loop.run_in_executor(pool, int)
        await asyncio.sleep(10_000)

    with ThreadPoolExecutor(1) as pool:
        assert await failures(works_and_hangs, timeout=1000) == ["TimeoutError"]


async def test_an_executor_of_ones_own_takes_real_time_when_it_works() -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        assert await failures(lambda: loop.run_in_executor(pool, time.sleep, 0.3), timeout=10) == []


async def test_an_idle_thread_of_another_default_executor_holds_nothing_up() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "named"))

    async def works_and_hangs() -> None:
        await asyncio.to_thread(int)
        await asyncio.sleep(10_000)

    assert await failures(works_and_hangs, timeout=1000) == ["TimeoutError"]


async def test_a_thread_that_ends_between_a_look_and_the_jump_is_not_jumped_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop: Any = asyncio.get_running_loop()
    finish, told, overtaken, looks = threading.Event(), asyncio.Event(), list[bool](), 0
    thread = threading.Thread(target=lambda: (finish.wait(10), loop.call_soon_threadsafe(told.set)))
    real_select = loop._selector.select

    def select(timeout: float | None) -> Any:
        nonlocal looks
        ready = real_select(timeout)
        if timeout == 0 and not loop._ready and (looks := looks + 1) == TURNS:
            finish.set()
            thread.join()
        return ready

    clock = VirtualTime(lambda: True)
    monkeypatch.setattr(loop._selector, "select", select)
    with clock.installed(), clock.jumping():
        thread.start()
        late = loop.call_later(1000, overtaken.append, True)
        await told.wait()
        late.cancel()
    assert looks >= TURNS
    assert overtaken == []
