"""Virtual time at its edges: far ahead, many times over, and beside threads that start, idle and end."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from bus import Event, RequestTimeout, Service, SqliteStore, SqliteTransaction, clock, immediate
from bus.testing import NotSettled, Tester
from bus.testing.virtual_time import TURNS, VirtualTime
from tests.unit.testing.far_end import answer


class Asked(Event, type="asked"):
    pass


class Answered(Event, type="answered"):
    pass


class Later(Event, type="later"):
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


class Pool:
    """What was connected before the Tester: whatever is at its other end takes 50 ms to answer."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        threading.Thread(target=answer, args=(theirs,), daemon=True).start()

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=self._ours)

    async def query(self) -> None:
        self._writer.write(b"?")
        assert await self._reader.readexactly(1) == b"x"

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


class Threaded:
    """What was connected before the Tester, and has a thread that does its work."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    async def connect(self) -> None:
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while (asked := self._asked.get()) is not None:
            time.sleep(0.05)
            self._loop.call_soon_threadsafe(asked.set_result, None)

    async def query(self) -> None:
        asked: asyncio.Future[None] = self._loop.create_future()
        self._asked.put(asked)
        await asked

    async def close(self) -> None:
        self._asked.put(None)


@pytest.mark.parametrize("kind", [Pool, Threaded])
async def test_what_was_connected_before_takes_the_real_time_that_it_takes(kind: type[Pool | Threaded]) -> None:
    there = kind()
    await there.connect()
    await there.query()
    assert await failures(there.query, timeout=60) == []
    await there.close()


async def test_a_thread_that_was_there_before_and_knows_no_event_loop_holds_nothing_up() -> None:
    over = threading.Event()
    threading.Thread(target=over.wait, args=(10,)).start()
    assert await failures(lambda: asyncio.sleep(10_000), timeout=1000) == ["TimeoutError"]
    over.set()


async def test_a_handler_that_spins_reaches_its_timeout() -> None:
    async def spins() -> None:
        while True:
            await asyncio.sleep(0)

    assert await failures(spins, timeout=1) == ["TimeoutError"]


async def test_who_waits_beside_a_handler_that_spins_does_not_wait_for_ever() -> None:
    service, over = Service("edge"), list[bool]()

    @service.on(Asked)
    async def spins(asked: Asked) -> None:
        while not over:
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    async with Tester(service) as bus:
        with pytest.raises(RequestTimeout):
            await bus.request(Asked(), Answered, timeout=1)
        before = loop.time()
        await bus.advance(1)
        assert loop.time() - before == pytest.approx(1, abs=0.01)
        over.append(True)


async def test_time_that_does_not_pass_says_why() -> None:
    service, over = Service("edge"), threading.Event()

    @service.on(Asked)
    def blocks(asked: Asked) -> None:
        over.wait(10)

    async with Tester(service) as bus:
        await bus.publish(Asked())
        with pytest.raises(NotSettled, match=r"advance\(3600\) .*\n.* the thread .* is running\n.*edge\.blocks"):
            await bus.advance(3600, within=1)
        over.set()


async def test_wall_time_jumps_in_threads_too() -> None:
    service, seen = Service("edge"), []

    @service.on(Asked)
    def plain(asked: Asked) -> None:
        seen.append(clock.now())

    before = clock.now()
    async with Tester(service) as bus:
        await bus.publish(Asked(), delay=timedelta(days=3))
        await bus.settled()
    assert timedelta(days=3) <= seen[0] - before < timedelta(days=3, minutes=5)
    assert await asyncio.to_thread(clock.now) - before < timedelta(minutes=5)


async def test_the_threads_of_a_store_hold_nothing_up_and_go_by_the_same_clock(tmp_path: Path) -> None:
    service, runs = Service("edge", store=SqliteStore(tmp_path / "edge.db", keep=timedelta(days=7))), []

    @service.on(Asked, idempotent=True, timeout=60, retry=immediate(1))
    async def notes(asked: Asked, transaction: SqliteTransaction) -> None:
        await transaction.execute("CREATE TABLE IF NOT EXISTS notes (n)")
        await transaction.execute("INSERT INTO notes VALUES (1)")
        runs.append(await transaction.execute("SELECT count(*) FROM notes"))
        if len(runs) == 3:
            await asyncio.sleep(3600)

    async with Tester(service) as bus:
        for number in range(3):
            await bus.publish(Asked(), id="same" if number < 2 else "hangs")
            await bus.settled()
            await bus.advance(timedelta(days=8))
        assert runs == [[(1,)], [(2,)], [(3,)]]
        assert [letter.failure.error_type for letter in bus.dead_letters()] == ["TimeoutError"]


async def test_what_is_due_when_time_has_passed_comes_to_its_end_before_anything_later() -> None:
    service, seen = Service("edge"), []

    @service.on(Asked)
    async def answer(asked: Asked) -> Answered:
        for _ in range(30):
            await asyncio.sleep(0)
        return Answered()

    @service.on(Answered)
    async def note(answered: Answered) -> None:
        seen.append("at 10 s")

    @service.on(Later)
    async def later(later: Later) -> None:
        seen.append("later")

    async with Tester(service) as bus:
        await bus.publish(Asked(), delay=10)
        await bus.publish(Later(), delay=10.01)
        await bus.advance(10)
        assert seen == ["at 10 s"]


@pytest.mark.timeout(30)
async def test_what_does_not_settle_is_given_up_though_a_test_stops_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("edge")

    @service.on(Asked)
    async def hangs(asked: Asked) -> None:
        await asyncio.Event().wait()

    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0), Tester(service) as bus:
        await bus.publish(Asked())
        with monkeypatch.context() as stopped, pytest.raises(NotSettled, match=r"running: edge\.hangs"):
            stopped.setattr(time, "monotonic", lambda: 1.0)  # as freezegun does
            await bus.settled(within=0.1)
