"""D5 where links, queues and foreign brokers' habits get in the way."""

from __future__ import annotations

import asyncio
from itertools import count

import aio_pika
import pytest

from bus import Context, Message, Queue, Service, fixed
from tests.broker.proxy import Proxy

from .orderly import Moved
from .stage import WITHIN, Log, Stage, staged
from .test_order import by_key, moves
from .test_recovery import lines


async def test_d5_a_foreign_queue_is_handled_in_order_by_key(rabbitmq: Stage) -> None:
    done: Log[tuple[str, int]] = Log()
    service = Service("yard")

    @service.on(Queue("theirs"), ordered_by="correlation_id", retry=fixed(5, 0.05))
    async def work(message: Message, context: Context) -> None:
        number = int(message.body)
        if number % 3 == 0 and context.attempt < 3:
            raise ConnectionError
        done.append((str(message.correlation_id), number))

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("theirs", durable=True)
        for number in range(10):
            for key in "ab":
                foreign = aio_pika.Message(str(number).encode(), correlation_id=key)
                await channel.default_exchange.publish(foreign, "theirs")
    async with rabbitmq.hosting(service):
        await done.reaches(20)
    assert by_key(done) == {key: list(range(10)) for key in "ab"}


async def test_d5_after_its_queue_was_deleted_an_ordered_handler_consumes_again_in_order(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    done: Log[tuple[str, int]] = Log()
    held, gone = asyncio.Event(), asyncio.Event()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        if moved.number == 3 and not held.is_set():
            held.set()
            await gone.wait()
        done.append((moved.parcel, moved.number))

    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(*moves("a", 6))
        await held.wait()
        async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
            await channel.queue_delete("yard.work")
        async with asyncio.timeout(WITHIN):
            while not lines(caplog, "not consuming", "queue=yard.work"):
                await asyncio.sleep(0.01)
        gone.set()
        await done.holds(lambda seen: ("a", 3) in seen, "what ran as its queue was deleted")
        numbers = count()
        async with asyncio.timeout(WITHIN):
            while len(done) < 10:  # until the queue is there again nobody wants what is published
                await rabbitmq.bus.publish(Moved(parcel="b", number=next(numbers)))
                await asyncio.sleep(0.02)
    assert by_key(done)["a"] == [0, 1, 2, 3]
    assert by_key(done)["b"] == sorted(by_key(done)["b"])


async def test_d5_a_worker_that_is_cut_off_without_a_word_does_not_disturb_the_order(
    rabbitmq: Stage, vhost_name: str, proxy: Proxy
) -> None:
    done: Log[tuple[str, int]] = Log()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", ordered_window=10)
    async def work(moved: Moved) -> None:
        await asyncio.sleep(0.01)
        done.append((moved.parcel, moved.number))

    url = proxy.url(vhost_name) + "?heartbeat=1"
    await rabbitmq.declare(service)
    async with staged("rabbitmq", url) as cut, cut.hosting(service):
        await rabbitmq.bus.publish(*moves("ab", 60))
        await done.reaches(20)
        async with rabbitmq.hosting(service):
            proxy.blackhole(up=True, down=True)
            await done.holds(lambda seen: len(set(seen)) == 120, "everything, of either worker")
            proxy.blackhole(up=False, down=False)
            await rabbitmq.bus.publish(*moves("ab", 20, start=60))
            await done.holds(lambda seen: len(set(seen)) == 160, "everything")
    first = list(dict.fromkeys(done))
    assert by_key(first) == {key: list(range(80)) for key in "ab"}
