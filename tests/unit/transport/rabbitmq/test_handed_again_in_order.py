"""What a queue hands out again by a channel that lives, as after its node was away: at a channel played by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from pamqp import commands

from bus import Context, Reject, Service, Settings, fixed, lanes
from bus.delivery import Runtime, build
from bus.discovery import named
from bus.flow import Flow
from bus.middleware.logging import logging
from bus.ordered import OrderedSubscriber
from bus.resources import Resources
from bus.runs import Runs
from bus.subscriber import Gate, Turn
from bus.transport import Subscription
from bus.transport.rabbitmq import copies, wire
from bus.transport.rabbitmq.channel import Parcel, Received
from bus.transport.rabbitmq.consumer import RabbitMQConsumer
from bus.transport.rabbitmq.delivery import Settling
from bus.transport.rabbitmq.doubts import Doubts
from bus.transport.rabbitmq.inbox import Inbox
from bus.transport.rabbitmq.topology import Names
from tests.unit.played import Placed


class Played:
    """A channel that lives, and notes what is acked by it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.closed = asyncio.Event()
        self.doubtful = False
        self.settled_last: deque[Any] = deque(maxlen=100)
        self.acked: list[int] = []

    def settle(self, tag: int) -> None:
        self.acked.append(tag)

    def release(self, tags: Iterable[int]) -> None: ...

    def hands(self, tag: int, *, redelivered: bool) -> Received:
        """Return the one message, as the queue hands it out for the first time or again."""
        headers = {"x-delivery-count": 1} if redelivered else {}
        flags, encoded = copies.encode({"message_id": "m1", "app_id": "/t", "headers": headers})
        method = commands.Basic.Deliver("1", tag, redelivered, "events", "order.placed")
        raw, header = wire.U32.pack(method.index) + method.marshal(), bytes(12) + flags.to_bytes(2, "big") + encoded
        channel: Any = self
        return Received(channel, raw, header, b"{}")


@asynccontextmanager
async def ordered(service: Service, stored: list[Parcel]) -> AsyncIterator[Inbox]:
    """Run the one handler of a service, which is ordered, meanwhile."""

    async def store(parcels: Iterable[Parcel]) -> None:
        stored.extend(parcels)

    runtime = Runtime(
        settings=Settings(),
        events=named([service]),
        resources=Resources(service.resources, {}),
        source="/test/shop",
        threads=anyio.CapacityLimiter(4),
    )
    inbox, doubts = Inbox(set()), Doubts()
    unused: Any = None
    place = Subscription(service="shop", handler="work", patterns=("order.placed",), ordered=True)
    settling = Settling(place, Names(), unused, store, store, unused, unused, unused, unused, doubts)
    handler, gate = replace(service.handlers[0], flow=Flow()), Gate(asyncio.Semaphore(8), Turn())
    runs = Runs()
    process = build(handler, runtime, gate, runs, (), logging())
    made = OrderedSubscriber(handler, gate, process, 4, lambda _: "k", runs, 0.1, lambda: None)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(made.run(RabbitMQConsumer(inbox, [], settling, doubts), stop))
        try:
            yield inbox
        finally:
            stop.set()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("came_before", [False, True])
@pytest.mark.parametrize("ends", ["at once", "after a retry", "as a dead letter"])
async def test_l2_an_ordered_message_that_is_handed_out_again_runs_once_and_each_handing_is_acked_once(
    came_before: bool, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both came before, they may be two copies as well: a publisher that was told nothing repeats itself."""
    monkeypatch.setattr(lanes, "RELEASED", 0.001)
    attempts, stored, channel, service = list[int](), list[Parcel](), Played(), Service("shop")
    go = asyncio.Event()

    @service.on(Placed, ordered_by="number", retry=fixed(3, 0.001))
    async def work(placed: Placed, context: Context) -> None:
        attempts.append(context.attempt)
        await go.wait()
        if ends == "as a dead letter":
            raise Reject("no")
        if ends == "after a retry" and context.attempt == 1:
            raise ConnectionError

    async with ordered(service, stored) as inbox:
        inbox.put(channel.hands(1, redelivered=came_before))
        await until(lambda: attempts)
        inbox.put(channel.hands(2, redelivered=True))
        await until(lambda: not inbox.ready)
        await asyncio.sleep(0)
        go.set()
        await until(lambda: len(channel.acked) >= 2)
    assert channel.acked == [1, 2]
    assert attempts == ([1, 2] if ends == "after a retry" else [1])
    assert len(stored) == (ends == "as a dead letter")
