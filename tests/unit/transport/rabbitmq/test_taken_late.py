"""What a queue hands out again while it runs, by the same channel: its first ack is void, and it is not run again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import pytest
from pamqp import commands

from bus import Service, Settings
from bus.delivery import Runtime, build
from bus.discovery import named
from bus.flow import Flow
from bus.middleware.logging import logging
from bus.resources import Resources
from bus.runs import Runs
from bus.subscriber import Gate, Subscriber, Turn
from bus.transport import Subscription
from bus.transport.rabbitmq import copies, wire
from bus.transport.rabbitmq.channel import Received
from bus.transport.rabbitmq.consumer import RabbitMQConsumer
from bus.transport.rabbitmq.delivery import Settling
from bus.transport.rabbitmq.doubts import Doubts
from bus.transport.rabbitmq.inbox import Inbox
from bus.transport.rabbitmq.topology import Names
from tests.unit.played import Placed


class Channel:
    """A channel that lives on. It notes what is acked."""

    error: Exception | None = None
    doubtful = False

    def __init__(self) -> None:
        self.settled_last: deque[Any] = deque(maxlen=100)
        self.acked: list[int] = []

    def settle(self, tag: int) -> None:
        self.acked.append(tag)

    def release(self, tags: Iterable[int]) -> None: ...


class Handing:
    """A handler of so many unsettled messages, what its queue hands out, and what of it began."""

    def __init__(self, inbox: Inbox) -> None:
        self.began: list[int] = []
        self.go = asyncio.Event()
        self.channel = Channel()
        self.inbox = inbox

    def hand(self, number: int, tag: int, *, again: bool = False) -> None:
        headers = {"x-delivery-count": 1} if again else {}
        flags, encoded = copies.encode({"message_id": f"m{number}", "app_id": "/t", "headers": headers})
        method = commands.Basic.Deliver("1", tag, again, "events", "order.placed")
        raw = wire.U32.pack(method.index) + method.marshal()
        header, body = bytes(12) + flags.to_bytes(2, "big") + encoded, b'{"number": %d}' % number
        self.inbox.put(Received(cast("Any", self.channel), raw, header, body))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def handing(unsettled: int) -> AsyncIterator[Handing]:
    service, inbox, doubts, unused = Service("shop"), Inbox(set()), Doubts(), cast("Any", None)
    queue = Handing(inbox)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        queue.began.append(placed.number)
        await queue.go.wait()

    place = Subscription(service="shop", handler="work", patterns=("order.placed",))
    settling = Settling(place, Names(), unused, unused, unused, unused, unused, unused, unused, doubts)
    consumer = RabbitMQConsumer(inbox, [], settling, doubts)
    resources, threads = Resources(service.resources, {}), anyio.CapacityLimiter(4)
    runtime = Runtime(Settings(), named([service]), resources, "/test/shop", threads)
    handler, gate, runs = replace(service.handlers[0], flow=Flow()), Gate(asyncio.Semaphore(8), Turn()), Runs()
    process = build(handler, runtime, gate, runs, (), logging())
    subscriber = Subscriber(handler, gate, process, unsettled, runs, 0.1, lambda: None)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(subscriber.run(consumer, stop))
        try:
            yield queue
        finally:
            queue.go.set()
            stop.set()


@pytest.mark.parametrize("unsettled", [1, 2], ids=["nobody takes it meanwhile", "somebody waits with it"])
async def test_l2_what_is_handed_out_again_while_it_runs_is_not_run_again(unsettled: int) -> None:
    async with handing(unsettled) as queue:
        queue.hand(1, tag=1)
        await queue.until(lambda: queue.began)
        queue.hand(1, tag=2, again=True)
        await asyncio.sleep(0)
        queue.go.set()
        await queue.until(lambda: len(queue.channel.acked) == 2)
        assert (queue.began, queue.channel.acked) == ([1], [1, 2])


async def test_l2_what_is_given_back_before_its_run_is_over_is_not_run_again_either() -> None:
    async with handing(1) as queue:
        queue.hand(1, tag=1)
        await queue.until(lambda: queue.began)
        queue.hand(1, tag=2, again=True)
        queue.inbox.take_back(cast("Any", queue.channel))  # as for a pause
        queue.go.set()
        await queue.until(lambda: queue.channel.acked)
        queue.hand(1, tag=3, again=True)
        assert queue.channel.acked == [1, 3]
        queue.hand(2, tag=4)
        await queue.until(lambda: len(queue.channel.acked) == 3)
        assert queue.began == [1, 2]
