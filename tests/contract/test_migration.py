"""L3: `topology migrate` moves a subscription to other arguments, loses nothing, and can be cut off anywhere."""

from __future__ import annotations

import asyncio
from collections import Counter

from bus import Service, discovery
from bus.transport import Subscription
from .stage import Log, Placed, Stage


QUEUE = "stock.work"


def version(log: Log[str], name: str = "", *, ordered: bool = False) -> Service:
    """Return a version of the service whose handler is ordered, or is not."""
    service = Service("stock")

    @service.on(Placed, name="work", ordered_by="note" if ordered else None)
    async def work(placed: Placed) -> None:
        log.append(f"{name}{placed.number}")

    return service


def subscription(service: Service) -> Subscription:
    (handler,) = service.handlers
    return handler.subscription(discovery.named([service]))


async def migrated(stage: Stage, service: Service) -> int:
    """Migrate as the command does."""
    return await stage.transport.topology.migrate("contract", subscription(service), lambda what, moved: moved or print(what))


async def test_l3_a_handler_is_moved_to_other_arguments_with_its_messages(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    await rabbitmq.bus.publish(*(Placed(number=number, note="a") for number in range(300)))
    assert await migrated(rabbitmq, version(log, ordered=True)) == 600
    assert await rabbitmq.ready(QUEUE) == 300
    async with rabbitmq.hosting(version(log, ordered=True)):
        await rabbitmq.bus.publish(Placed(number=300, note="a"))
        await log.reaches(301)
    assert log == [str(number) for number in range(301)]


async def test_l3_running_replicas_of_the_version_before_leave_and_work_on_what_is_there(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    count = 2000
    async def publishing() -> None:
        for number in range(count):
            await rabbitmq.bus.publish(Placed(number=number, note="a"))
    async with rabbitmq.hosting(version(log)):
        await log_noted(rabbitmq)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publishing())
            await log.reaches(100)
            await migrated(rabbitmq, version(log, ordered=True))
        await log.holds(lambda log: len(set(log)) == count, "every number")
    print(len(log) - count, "twice", [n for n, times in Counter(log).items() if times > 1])


async def log_noted(stage):
    await asyncio.sleep(1.5)
