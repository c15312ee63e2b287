"""F5: what kills workers is dead-lettered, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from bus import Context, Message, Service, fixed
from bus.testing import Tester

from .poisoned import CRASHES, EXITS, Done, services
from .stage import Log, Placed, Shipped, Stage


MANY = 100


async def poisoned(stage: Stage, *arguments: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"BUS_URL": stage.settings.url, "BUS_LOG_LEVEL": "error"}
    command = (sys.executable, "-m", "tests.contract.poisoned", *arguments)
    return await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.DEVNULL)


async def test_f5_two_that_kill_their_worker_are_dead_lettered_and_their_neighbours_are_not(rabbitmq: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    collector = Service("collector")

    @collector.on(Done)
    async def collect(done: Done) -> None:
        log.append((done.service, done.number))

    await rabbitmq.declare(*services())
    for number in range(MANY):
        await rabbitmq.bus.publish(Placed(number=number), Shipped(number=number))
    async with rabbitmq.hosting(collector):
        process = await poisoned(rabbitmq)
        letters = await rabbitmq.letters("sick", 2, within=90)
        await log.holds(lambda seen: len(set(seen)) == 2 * MANY - 2, "everything that does not kill")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert {letter.failure.reason for letter in letters} == {"crash"}
        assert sorted(int(letter.message.body.split(b":")[1].split(b",")[0]) for letter in letters) == [EXITS, CRASHES]
        assert len(await rabbitmq.letters("sick", 2)) == 2
        assert await rabbitmq.letters("healthy", 0) == []


async def test_f5_deploys_dead_letter_nothing_however_many(rabbitmq: Stage) -> None:
    begun: Log[int] = Log()
    done: Log[int] = Log()
    go = asyncio.Event()
    sick, healthy = services()
    slow = Service("sick", concurrency=2)

    @slow.on(Placed, retry=fixed(3, 0.1), name="work")
    async def hang(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()
        done.append(placed.number)

    await rabbitmq.declare(sick, healthy)
    for number in range(100, 120):
        await rabbitmq.bus.publish(Placed(number=number))
    for deploy in range(25):
        if deploy % 2:
            process = await poisoned(rabbitmq, "unstarted")
            assert await process.wait() == 0
        else:
            count = len(begun)
            async with rabbitmq.hosting(slow, grace=0.05) as hosted:
                await begun.reaches(count + 1)
                await hosted.stop()
    go.set()
    async with rabbitmq.hosting(slow):
        await done.holds(lambda seen: set(seen) == set(range(100, 120)), "the whole backlog")
    assert await rabbitmq.letters("sick", 0) == []


async def test_f5_while_a_suspect_hangs_its_neighbours_go_on(stage: Stage) -> None:
    begun: Log[str] = Log()
    done: Log[int] = Log()
    sick, healthy = Service("sick"), Service("healthy")

    @sick.on(Placed, timeout=60)
    async def hang(placed: Placed) -> None:
        begun.append("hangs")
        await asyncio.Event().wait()

    @sick.on(Shipped)
    async def sibling(shipped: Shipped) -> None:
        done.append(shipped.number)

    @healthy.on(Shipped)
    async def neighbour(shipped: Shipped) -> None:
        done.append(shipped.number)

    await stage.declare(sick, healthy)
    await stage.bus.publish(Placed())
    for life in range(3):
        async with stage.hosting(sick, healthy, grace=0.05) as hosted:
            await begun.reaches(life + 1)
            if life == 2:
                for number in range(100):
                    await stage.bus.publish(Shipped(number=number))
                await done.reaches(200)
            await hosted.stop()
    assert len(begun) == 3


async def test_f5_suspects_of_all_services_take_turns(stage: Stage) -> None:
    begun: Log[str] = Log()
    running, most = 0, 0
    go = asyncio.Event()
    pair = [Service("one"), Service("other")]

    for service in pair:

        @service.on(Placed, name="work")
        async def work(placed: Placed, context: Context) -> None:
            nonlocal running, most
            begun.append(context.message.id)
            running += 1
            most = max(most, running) if go.is_set() else 0
            try:
                await (asyncio.sleep(0.02) if go.is_set() else asyncio.Event().wait())
            finally:
                running -= 1

    await stage.declare(*pair)
    await stage.bus.publish(*(Placed(number=number) for number in range(4)))
    for life in (1, 2):
        async with stage.hosting(*pair, grace=0.05) as hosted:
            await begun.reaches(life * 8)
            await hosted.stop()
    suspects = len(begun)
    go.set()
    async with stage.hosting(*pair):
        await begun.reaches(suspects + 8)
    assert most == 1


async def test_f5_a_run_that_crashed_counts_and_one_that_ended_does_not() -> None:
    service, runs = Service("sick"), 0
    go = asyncio.Event()

    @service.on("order.placed")
    async def work(message: Message) -> None:
        nonlocal runs
        runs += 1
        await go.wait()

    async with Tester(service) as bus:
        await bus.publish(Placed())
        for life in range(7):
            while runs <= life:
                await asyncio.sleep(0)
            await bus.crash()
        await bus.settled()
        (letter,) = bus.dead_letters()
    assert (letter.failure.reason, letter.failure.attempts) == ("crash", 5)
    assert runs == 7  # two before it was suspected, and five that were marked
