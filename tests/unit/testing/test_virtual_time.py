"""Virtual time: it jumps over waits, and never over real work."""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import anyio.to_thread
import pytest

from bus import Event, Message, Service, clock, exponential, fixed, immediate
from bus.testing import NotSettled, NoVirtualTime, Tester


class Asked(Event, type="asked"):
    number: int = 0


async def test_a_policy_that_spans_days_takes_no_time() -> None:
    service, attempts = Service("patient"), []

    @service.on(Asked, retry=exponential(8, first=3600, factor=4, limit=86_400))
    async def answer(asked: Asked) -> None:
        attempts.append(clock.now())
        if len(attempts) < 8:
            raise ConnectionError

    started = time.monotonic()
    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled()
    assert len(attempts) == 8
    assert (attempts[-1] - attempts[0]).total_seconds() > 86_400
    assert time.monotonic() - started < 5


async def test_a_handler_that_hangs_reaches_its_timeout_at_once() -> None:
    service = Service("hung")

    @service.on(Asked, timeout=1500, retry=immediate(2))
    async def answer(asked: Asked) -> None:
        await asyncio.Event().wait()

    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled()
        (letter,) = bus.dead_letters()
    assert letter.failure.error_type == "TimeoutError"
    assert letter.failure.attempts == 2


def sleeps_in_a_plain_function(asked: Asked) -> None:
    time.sleep(0.3)


async def sleeps_in_asyncios_thread(asked: Asked) -> None:
    await asyncio.to_thread(time.sleep, 0.3)


async def sleeps_in_anyios_thread(asked: Asked) -> None:
    await anyio.to_thread.run_sync(time.sleep, 0.3)


async def waits_for_a_thread_of_its_own(asked: Asked) -> None:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: (time.sleep(0.3), loop.call_soon_threadsafe(done.set)))
    thread.start()
    await done.wait()
    thread.join()


async def waits_for_a_socket(asked: Asked) -> None:
    async def late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(time.sleep, 0.3)
        writer.write(b"x")
        writer.close()

    async with await asyncio.start_server(late, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b"x"
        writer.close()
        await writer.wait_closed()


async def waits_for_a_process(asked: Asked) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(0.3)")
    assert await process.wait() == 0


@pytest.mark.parametrize(
    "handler",
    [
        sleeps_in_a_plain_function,
        sleeps_in_asyncios_thread,
        sleeps_in_anyios_thread,
        waits_for_a_thread_of_its_own,
        waits_for_a_socket,
        waits_for_a_process,
    ],
)
async def test_real_work_takes_real_time_and_is_not_timed_out(handler: object) -> None:
    service = Service("real")
    service.on(Asked, timeout=10, retry=immediate(1))(handler)  # type: ignore[arg-type]
    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled()
        assert len(bus.handled(handler)) == 1  # type: ignore[arg-type]


async def test_an_idle_thread_of_a_pool_holds_nothing_up() -> None:
    service = Service("mixed")

    @service.on(Asked, name="plain")
    def plain(asked: Asked) -> None: ...

    @service.on(Asked, name="hung", timeout=1000, retry=immediate(1))
    async def hung(asked: Asked) -> None:
        await asyncio.to_thread(int)
        await asyncio.sleep(10_000)

    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled(within=3)
        assert [letter.handler for letter in bus.dead_letters()] == ["hung"]


async def test_advance_goes_exactly_so_far() -> None:
    service, seen = Service("exact"), []

    @service.on(Asked)
    async def answer(asked: Asked) -> None:
        seen.append(asked.number)

    async with Tester(service) as bus:
        await bus.publish(Asked(number=1), delay=10)
        await bus.publish(Asked(number=2), delay=10.5)
        before = asyncio.get_running_loop().time()
        await bus.advance(10)
        assert seen == [1]
        assert asyncio.get_running_loop().time() - before == pytest.approx(10, abs=0.2)
        await bus.advance(0.5)
        assert seen == [1, 2]


async def test_time_stands_while_nobody_awaits_the_bus() -> None:
    service, seen = Service("still"), []

    @service.on(Asked)
    async def answer(asked: Asked) -> None:
        seen.append(asked)

    async with Tester(service) as bus:
        await bus.publish(Asked(), delay=60)
        await asyncio.sleep(0.02)
        assert seen == []


async def test_the_same_test_takes_the_same_order_twice() -> None:
    async def once() -> list[int]:
        service, seen = Service("order", concurrency=4), []

        @service.on(Asked, retry=fixed(3, 1))
        async def answer(asked: Asked) -> None:
            await asyncio.sleep(asked.number % 3)
            seen.append(asked.number)

        async with Tester(service) as bus:
            await bus.publish(*(Asked(number=number) for number in range(20)))
            await bus.settled()
        return seen

    assert await once() == await once()


async def test_not_settled_says_who_goes_round_in_circles() -> None:
    service = Service("circle")

    @service.on(Asked)
    async def again(asked: Asked) -> Asked:
        return Asked(number=asked.number + 1)

    async with Tester(service, settings=None) as bus:
        await bus.publish(Asked())
        with pytest.raises(NotSettled, match=r"circle\.again"):
            await bus.settled(deliveries=20)


async def test_not_settled_says_why_the_clock_stands() -> None:
    service, done = Service("stuck"), threading.Event()

    @service.on(Asked)
    def wait(asked: Asked) -> None:
        done.wait(10)

    async with Tester(service) as bus:
        await bus.publish(Asked())
        with pytest.raises(NotSettled, match=r"the thread .* is running") as raised:
            await bus.settled(within=0.2)
        assert "test_virtual_time.py" in str(raised.value)
        done.set()


async def test_two_testers_on_one_loop_are_refused() -> None:
    async with Tester(Service("one")):
        with pytest.raises(NoVirtualTime, match="open on this event loop"):
            await Tester(Service("two")).__aenter__()


async def test_timers_that_were_set_before_the_end_are_right_after_it() -> None:
    loop = asyncio.get_running_loop()
    async with Tester(Service("empty")) as bus:
        await bus.advance(1000)
        due = loop.call_later(50, lambda: None)
    assert due.when() - loop.time() == pytest.approx(50, abs=1)
    due.cancel()


async def test_a_pattern_handler_gets_the_message() -> None:
    service, seen = Service("raw"), []

    @service.on("#")
    async def everything(message: Message) -> None:
        seen.append(message.type)

    async with Tester(service) as bus:
        await bus.publish(Asked())
        await bus.settled()
    assert seen == ["asked"]
