"""A rate per handler, in virtual time: it delays, fails nothing, and takes no more than it can begin."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from bus import ConfigurationError, Event, Service, fixed
from bus.pace import Pace, rate
from bus.subscriber import Gate, Turn, prefetch
from bus.testing import Tester


class Placed(Event, type="order.placed"):
    number: int = 0


class Paced:
    """A service with one handler that takes so long, and when it began."""

    def __init__(self, rate: str, *, takes: float = 0, concurrency: int = 16, **options: Any) -> None:
        self.service = Service("shop", concurrency=concurrency)
        self.began: list[float] = []
        self.takes = takes
        self.service.on(Placed, rate=rate, timeout=1400, **options)(self.work)

    async def work(self, placed: Placed) -> None:
        self.began.append(now())
        await asyncio.sleep(self.takes)

    def gaps(self) -> list[float]:
        """Return the seconds between two runs."""
        return [round(later - earlier, 3) for earlier, later in zip(self.began, self.began[1:], strict=False)]


def now() -> float:
    return asyncio.get_running_loop().time()


def orders(size: int) -> list[Placed]:
    return [Placed(number=number) for number in range(size)]


@pytest.mark.parametrize(("written", "gap"), [("2/s", 0.5), ("0.5/s", 2), ("30/m", 2), ("6/h", 600)])
async def test_runs_begin_at_the_rate(written: str, gap: float) -> None:
    paced = Paced(written)
    async with Tester(paced.service) as bus:
        await bus.publish(*orders(8))
        await bus.settled()
        assert len(paced.began) == 8
        assert all(each >= gap - 0.101 for each in paced.gaps())
        assert paced.began[-1] - paced.began[0] == pytest.approx(7 * gap, abs=0.11)


async def test_it_costs_no_attempt_and_fails_nothing() -> None:
    service, attempts = Service("shop"), Counter[int]()

    def watched(handler: Any, process: Any) -> Any:
        async def run(delivery: Any) -> Any:
            attempts[delivery.attempt] += 1
            return await process(delivery)

        return run

    @service.on(Placed, rate="1/s", timeout=0.5, retry=fixed(1, 0))
    async def work(placed: Placed) -> None: ...

    async with Tester(service, middleware=[watched]) as bus:
        await bus.publish(*orders(120))
        await bus.settled()
        assert bus.dead_letters() == []
    assert attempts == {1: 120}


async def test_a_fast_rate_is_smooth_after_a_small_burst() -> None:
    paced = Paced("100/s")
    async with Tester(paced.service) as bus:
        await bus.publish(*orders(200))
        await bus.settled()
        began = paced.began[0]
        assert sum(at - began < 0.001 for at in paced.began) == 11
        for second in (0.2, 0.7, 1.2):
            assert sum(second <= at - began < second + 0.5 for at in paced.began) in (49, 50, 51)


async def test_silence_saves_up_no_more_than_a_small_burst() -> None:
    paced = Paced("10/s")
    async with Tester(paced.service) as bus:
        await bus.publish(Placed())
        await bus.advance(3600)
        await bus.publish(*orders(10))
        await bus.advance(0.05)
        assert len(paced.began) == 1 + 2


async def test_what_waits_for_its_pace_holds_no_slot() -> None:
    paced, done = Paced("6/h", concurrency=1), []

    @paced.service.on(Placed)
    async def other(placed: Placed) -> None:
        done.append(placed.number)

    async with Tester(paced.service) as bus:
        await bus.publish(*orders(9))
        await bus.advance(1)
        assert (len(paced.began), len(done)) == (1, 9)


async def test_slots_that_come_free_at_once_do_not_let_the_rate_be_exceeded() -> None:
    service, began, go = Service("shop", concurrency=4), [], asyncio.Event()

    @service.on(Placed, rate="4/s", name="paced")
    async def paced(placed: Placed) -> None:
        began.append(now())

    @service.on("other.*", name="other")
    async def other(message: Any) -> None:
        await go.wait()

    class Other(Event, type="other.one"): ...

    async with Tester(service) as bus:
        await bus.publish(*(Other() for _ in range(4)))
        await bus.advance(1)
        await bus.publish(*orders(4))
        await bus.advance(30)  # every slot is taken, and the pace has long been due for all four
        assert began == []
        go.set()
        await bus.settled()
    # a tenth of a second is caught up on, after a silence, and no more
    assert [round(at - began[0], 2) for at in began] == [0, 0.15, 0.4, 0.65]


async def test_a_slow_handler_takes_no_more_than_it_begins_in_a_second() -> None:
    paced = Paced("3/s")
    async with Tester(paced.service) as bus:
        await bus.publish(*orders(30))
        await bus.advance(0.01)
        queue = bus.transport.queues["shop.work"]
        assert queue.consumers[0].unsettled <= 3
        assert len(queue.ready) >= 26


async def test_long_runs_are_as_many_at_once_as_the_rate_needs() -> None:
    paced = Paced("1/s", takes=10)
    async with Tester(paced.service) as bus:
        await bus.publish(*orders(30))
        await bus.settled()
        assert paced.began[-1] - paced.began[0] == pytest.approx(29, abs=0.2)


def test_what_waits_is_never_so_much_that_the_broker_takes_it_back() -> None:
    shares = {}
    for written in ("6/h", "60/h", "1/s", "100/s"):
        service = Service("shop")
        service.on(Placed, rate=written, name="work")(lambda event: None)
        shares[written] = prefetch(service, service.handlers[0])
    assert shares == {"6/h": 1, "60/h": 7, "1/s": 32, "100/s": 32}


async def test_what_begins_at_once_waits_behind_nobody() -> None:
    pace = Pace(rate("5/s"))
    gate = Gate(asyncio.Semaphore(3), Turn(), None, pace)
    while pace.free():
        pace.take()
    waiting = asyncio.ensure_future(gate.reserve())
    await asyncio.sleep(0)
    assert not await gate.take_now()
    while not gate.due():
        pass  # the one that waits has not noticed yet
    assert await gate.take_now()
    assert not waiting.done()
    gate.give()
    await waiting


async def test_whoever_gives_up_waiting_costs_the_others_nothing() -> None:
    pace = Pace(rate("20/s"))
    while pace.free():
        pace.take()
    waiting = [asyncio.ensure_future(pace.wait()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in waiting[:9]:
        task.cancel()
    before = now()
    await waiting[9]
    assert now() - before < 5 / 20
    assert pace.free()


@pytest.mark.parametrize("written", ["100", "100/d", "-1/s", "fast", "1/ s", "1e3/s", "", 100, "1/s ", "１/s"])
def test_what_is_no_rate_is_told_with_the_place_of_the_handler(written: Any) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=r"test_pace\.py:\d+.*rate=.*100/s") as raised:

        @service.on(Placed, rate=written)
        async def work(placed: Placed) -> None: ...

    assert len(raised.value.problems) == 1


@pytest.mark.parametrize("written", ["0/s", "0/h", "5/h", "0.001/s", "9" * 400 + "/s"])
def test_a_rate_that_no_broker_would_wait_for_is_refused(written: str) -> None:
    with pytest.raises(ConfigurationError, match="30 minutes"):
        rate(written)
