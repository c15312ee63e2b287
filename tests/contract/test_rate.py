"""D4 at a rate: a handler takes no more than it begins, and delays what it takes."""

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
