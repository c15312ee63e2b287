"""D4 of a handler that is held back: at a rate it takes no more than it begins, and a pause adds nothing."""

from __future__ import annotations

import asyncio

from bus import Service

from .stage import WITHIN, Log, Placed, Stage


MANY = 20


def paced(log: Log[int], rate: str | None) -> Service:
    service = Service("shop")

    @service.on(Placed, rate=rate)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    return service


async def test_d4_a_slow_rate_takes_no_more_than_it_begins_and_leaves_the_rest_to_replicas(stage: Stage) -> None:
    slow: Log[int] = Log()
    quick: Log[int] = Log()
    async with stage.hosting(paced(slow, "6/h")):
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await slow.reaches(1)
        async with asyncio.timeout(WITHIN):
            while await stage.ready("shop.work") != MANY - 2:  # one has run, and one waits for its time
                await asyncio.sleep(0.05)
        async with stage.hosting(paced(quick, None)):
            await quick.reaches(MANY - 2)
            assert len(slow) == 1


async def test_d4_a_rate_delays_and_fails_nothing(stage: Stage) -> None:
    times: Log[float] = Log()
    service = Service("shop")

    @service.on(Placed, rate="20/s")
    async def work(placed: Placed) -> None:
        times.append(asyncio.get_running_loop().time())

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await times.reaches(MANY)
    assert times[-1] - times[0] > (MANY - 4) / 20  # a burst is three
    assert await stage.letters("shop", 0) == []


async def test_d4_what_runs_through_a_pause_counts_when_the_handler_goes_on(stage: Stage) -> None:
    begun: Log[int] = Log()
    done: Log[int] = Log()
    go = asyncio.Event()
    service = Service("shop", concurrency=4)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()
        done.append(placed.number)

    async def waiting(size: int) -> None:
        async with asyncio.timeout(WITHIN):
            while await stage.ready("shop.work") != size:
                await asyncio.sleep(0.02)

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(*(Placed(number=number) for number in range(40)))
        await begun.reaches(4)
        await waiting(32)
        hosted.worker.pause("shop.work")
        await waiting(36)
        hosted.worker.resume("shop.work")
        await waiting(32)
        await asyncio.sleep(0.2)  # as long as more would come
        assert await stage.ready("shop.work") == 32
        go.set()
        await done.holds(lambda seen: set(seen) == set(range(40)), "all of them")
