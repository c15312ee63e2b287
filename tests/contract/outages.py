"""Outages that a test makes, and what is in a queue after them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import aio_pika

from bus import BusUnavailable, Message, Service
from bus.transport.rabbitmq import wire
from tests.broker.node import Node
from tests.broker.proxy import Proxy
from tests.rabbitmq.links import connected, consume, count, settle

from .stage import WITHIN, Hosted, Log, Placed, Stage


Outage: TypeAlias = Callable[[Proxy], None]

CANCEL = (
    '{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)), '
    "[rabbit_channel:send_command(element(1, C), {{'basic.cancel', element(2, C), true}}) "
    "|| C <- rabbit_amqqueue:consumers(Q)]."
)
"""Tells the consumers of a queue that they are cancelled, which the queue does not know of."""


CONSUMERS = (
    '{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)), '
    "length(rabbit_amqqueue:consumers(Q))."
)
"""Tells how many consumers a queue has that may still get something."""


def refuse(proxy: Proxy) -> None:
    """The broker is gone: connections are reset, and new ones refused."""
    proxy.refuse(True)
    proxy.drop()


def swallow_up(proxy: Proxy) -> None:
    """What goes to the broker gets lost on the way."""
    proxy.blackhole(up=True, down=False)


def swallow_down(proxy: Proxy) -> None:
    """What comes from the broker gets lost on the way."""
    proxy.blackhole(up=False, down=True)


def swallow_all(proxy: Proxy) -> None:
    """Everything gets lost on the way."""
    proxy.blackhole(up=True, down=True)


OUTAGES = (refuse, swallow_up, swallow_down, swallow_all)


def heal(proxy: Proxy) -> None:
    """End the outage."""
    proxy.refuse(False)
    proxy.blackhole(up=False, down=False)


def keeping() -> Service:
    """A service whose queue is declared to keep what is published, and is not hosted."""
    service = Service("keeper")

    @service.on("#")
    async def keep(message: Message) -> None: ...

    return service


async def kept(url: str) -> Counter[str]:
    """Empty the keeper's queue, and return how often each id was in it."""
    found: Counter[str] = Counter()
    async with connected(url) as link:
        size = await count(link, "keeper.keep")
        channel, inbox = await consume(link, "keeper.keep", 1_000)
        for _ in range(size):
            received = await inbox.get()
            settle(received)
            found[wire.properties(received.header)["message_id"]] += 1
        await channel.aclose()
    return found


async def goes(stage: Stage, **options: Any) -> bool:
    """Publish, and tell whether that went."""
    try:
        await stage.bus.publish(Placed(), **options)
    except BusUnavailable:
        return False
    return True


async def removed(stage: Stage, hosted: Hosted, node: Node, queue: str, go: asyncio.Event) -> None:
    """Stop a worker whose handler waits to `go`, and delete its queue first: what it retries comes back to none."""
    vhost = stage.settings.url.rpartition("/")[2]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hosted.stop())
        async with asyncio.timeout(WITHIN):
            while (
                await asyncio.to_thread(node.ctl, "eval", CONSUMERS.format(vhost=vhost, queue=queue))
            ).strip() != "0":
                await asyncio.sleep(0.02)
        async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
            await channel.queue_delete(queue)
        go.set()


@asynccontextmanager
async def alarm(node: Node) -> AsyncIterator[None]:
    """Have the broker run out of memory meanwhile."""
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.000001")
    # what is published before the alarm is taken as ever
    while "memory" not in await asyncio.to_thread(node.ctl, "eval", "rabbit_alarm:get_alarms()."):
        await asyncio.sleep(0.05)
    try:
        yield
    finally:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")


async def talkative(url: str, tasks: int, each: int, timeout: float = 5) -> asyncio.subprocess.Process:
    """Start a publisher that prints the id of each message whose publish has returned."""
    environment = os.environ | {"BUS_URL": url, "BUS_PUBLISH_TIMEOUT": str(timeout)}
    command = [sys.executable, "-m", "tests.contract.talkative", str(tasks), str(each)]
    return await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)


class Publishers:
    """So many tasks that publish one message after the other; `stored` has the ids whose publish has returned."""

    def __init__(self, stage: Stage, tasks: int = 100) -> None:
        self.stored: Log[str] = Log()
        self._stage = stage
        self._tasks = tasks
        self._number = 0
        self._over = False

    async def go_on(self, more: int = 200, within: float = WITHIN) -> None:
        """Wait until so many more publishes have returned."""
        await self.stored.reaches(len(self.stored) + more, within)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Publishers]:
        """Publish meanwhile."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._tasks):
                tasks.create_task(self._publish())
            yield self
            self._over = True

    async def _publish(self) -> None:
        while not self._over:
            self._number += 1
            id = str(self._number)
            await self._stage.bus.publish(Placed(), id=id)
            self.stored.append(id)
            await asyncio.sleep(0.05)  # or a test that waits for a slow command counts many thousands
