"""C2: a breaker stops a handler that keeps failing, and nothing else."""

from __future__ import annotations

import asyncio

from bus import Message, Service, breaker, fixed

from .stage import WITHIN, Hosted, Log, Placed, Stage


MANY = 40


async def says(hosted: Hosted, handler: str, state: str) -> None:
    """Wait until the worker says so of its handler."""
    async with asyncio.timeout(WITHIN):
        while hosted.health.ready().body["handlers"][handler]["state"] != state:  # type: ignore[index]
            await asyncio.sleep(0.02)


async def waits(stage: Stage, queue: str, size: int) -> None:
    """Wait until so many messages are in the queue, and nobody holds them."""
    async with asyncio.timeout(WITHIN):
        while await stage.ready(queue) < size:
            await asyncio.sleep(0.05)


async def test_c2_it_leaves_the_backlog_in_the_queue_where_a_replica_may_have_it(stage: Stage) -> None:
    runs: Log[int] = Log()
    others: Log[int] = Log()
    replica: Log[int] = Log()
    service = Service("shop", concurrency=4, middleware=[breaker(failures=3, cool_down=1000)])
    better = Service("shop", concurrency=4)

    @service.on(Placed, retry=fixed(9, 0.1))
    async def work(placed: Placed) -> None:
        runs.append(placed.number)
        raise ConnectionError("the warehouse is down")

    @service.on("order.*")
    async def other(message: Message) -> None:
        others.append(1)

    @better.on(Placed, retry=fixed(9, 0.1), name="work")
    async def works(placed: Placed) -> None:
        replica.append(placed.number)

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await says(hosted, "shop.work", "breaker open")
        await waits(stage, "shop.work", MANY)  # the retried ones are back, too
        await others.reaches(MANY)
        assert len(runs) <= 3 + 4  # what was running when it opened
        told = hosted.health.ready()
        assert told.status == 200
        assert told.body["handlers"]["shop.other"] == {"state": "consuming"}  # type: ignore[index]
        async with stage.hosting(better):
            await replica.holds(lambda seen: set(seen) == set(range(MANY)), "the whole backlog")
        assert await stage.letters("shop", 0) == []


async def test_c2_it_tries_one_at_a_time_and_resumes_with_all_that_it_had(stage: Stage) -> None:
    begun: Log[int] = Log()
    done: Log[int] = Log()
    trying: Log[int] = Log()
    go = asyncio.Event()
    service = Service("shop", concurrency=8, middleware=[breaker(failures=3, cool_down=0.3)])

    @service.on(Placed, retry=fixed(9, 0.1))
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        if len(begun) <= 5:
            raise ConnectionError("the warehouse is down")
        trying.append(placed.number)
        await go.wait()
        done.append(placed.number)

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await trying.reaches(1)
        await says(hosted, "shop.work", "breaker open")
        await waits(stage, "shop.work", MANY - 1)
        assert len(trying) == 1  # though there is room for eight
        go.set()
        await done.holds(lambda seen: set(seen) == set(range(MANY)), "all of them")
        await says(hosted, "shop.work", "consuming")
    assert await stage.letters("shop", 0) == []


async def test_c2_a_breaker_stops_its_own_handler_and_no_other_of_the_service(stage: Stage) -> None:
    failed: Log[int] = Log()
    done: Log[int] = Log()
    service = Service("shop", concurrency=2, middleware=[breaker(failures=2, cool_down=1000)])

    @service.on(Placed, retry=fixed(2, 1000))
    async def failing(placed: Placed) -> None:
        failed.append(placed.number)
        raise ConnectionError

    @service.on(Placed)
    async def fine(placed: Placed) -> None:
        done.append(placed.number)

    async with stage.hosting(service) as hosted:
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await says(hosted, "shop.failing", "breaker open")
        await done.reaches(MANY)
        await stage.bus.publish(*(Placed(number=number) for number in range(MANY)))
        await done.reaches(2 * MANY)
        assert len(failed) <= 2 + 2


async def test_c2_its_failed_tries_a_pause_and_a_stop_keep_the_order_of_an_ordered_handler(stage: Stage) -> None:
    tries: Log[int] = Log()
    done: Log[int] = Log()
    up = asyncio.Event()
    service = Service("shop", middleware=[breaker(failures=2, cool_down=0.1)])

    @service.on(Placed, ordered_by="note", retry=fixed(1_000, 0.01))
    async def work(placed: Placed) -> None:
        tries.append(placed.number)
        if not up.is_set():
            raise ConnectionError("the warehouse is down")
        done.append(placed.number)

    await stage.declare(service)
    await stage.bus.publish(*(Placed(number=number, note="one key") for number in range(8)))
    for _ in range(2):
        async with stage.hosting(service) as hosted:
            before = len(tries)
            await tries.reaches(before + 4)
            hosted.worker.pause("shop.work")
            await waits(stage, "shop.work", 8)
            hosted.worker.resume("shop.work")
            await tries.reaches(len(tries) + 3)
    assert set(tries) == {0}  # it cost no other an attempt
    async with stage.hosting(service):
        up.set()
        await done.reaches(8)
    assert done == list(range(8))
