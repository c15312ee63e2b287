"""Kills: a worker's process and the broker's, in the middle of a thousand messages, lose nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from tests.broker.fixtures import Shared
from tests.broker.node import Node

from .mortal import finished, mortal
from .stage import Log, Message, Placed, Service, Stage, staged


MANY = 1_000


def collecting(log: Log[int]) -> Service:
    service = Service("collector")

    @service.on("order.shipped")
    async def collect(message: Message) -> None:
        log.append(finished(message))

    return service


async def worker(url: str) -> asyncio.subprocess.Process:
    environment = os.environ | {"BUS_URL": url, "BUS_LOG_LEVEL": "error"}
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.contract.mortal", env=environment)


async def test_kill_9_of_the_worker_loses_nothing(rabbitmq: Stage, broker: Shared) -> None:
    log: Log[int] = Log()
    await rabbitmq.declare(mortal())
    async with rabbitmq.hosting(collecting(log)):
        for start in range(0, MANY, 100):
            await rabbitmq.bus.publish(*(Placed(number=number) for number in range(start, start + 100)))
        for part in (100, 400, 700):
            process = await worker(rabbitmq.settings.url)
            await log.holds(lambda seen, part=part: len(set(seen)) >= part, "its part", 40)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            await process.wait()
        process = await worker(rabbitmq.settings.url)
        # so that it must have started, whatever the others have done
        await rabbitmq.bus.publish(Placed(number=MANY))
        await log.holds(lambda seen: len(set(seen)) == MANY + 1, "all results", 40)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert set(log) == set(range(MANY + 1))
    assert [letter async for letter in rabbitmq.transport.dead_letters.browse("mortal")] == []


async def test_kill_9_of_the_broker_loses_nothing(own_broker: Node) -> None:
    log: Log[int] = Log()
    async with (
        staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage,
        stage.hosting(mortal(), collecting(log)),
        asyncio.TaskGroup() as tasks,
    ):
        await stage.bus.publish(Placed(number=0))
        await asyncio.to_thread(own_broker.keep)

        async def publish() -> None:
            for number in range(1, MANY):
                await stage.bus.publish(Placed(number=number))

        tasks.create_task(publish())
        await log.holds(lambda seen: len(set(seen)) >= 200, "200 results")
        await asyncio.to_thread(own_broker.kill)
        await asyncio.to_thread(own_broker.start)
        await log.holds(lambda seen: len(set(seen)) >= 600, "600 results")
        await log.holds(lambda seen: len(set(seen)) == MANY, "all results")
