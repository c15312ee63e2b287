"""The two functions of a pika script, which knows only a queue, with each of their ends played by us."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import model_serializer, model_validator

from bus import Event, Message, Queue, Reject, Service, fixed
from tests.contract.stage import Log, Stage


SCRIPT = str(Path(__file__).with_name("inventory_updates.py"))


class StockCounted(Event, type="stock.counted"):
    sku: str
    left: int


class OrderNumber(Event, type="order.number"):
    """An event whose body is the number alone."""

    number: int

    @model_validator(mode="before")
    @classmethod
    def of_the_number(cls, body: Any) -> Any:
        return {"number": body} if isinstance(body, int) else body

    @model_serializer
    def alone(self) -> int:
        return self.number


def send(stage: Stage, number: str) -> None:
    environment = os.environ | {"RABBITMQ_URL": stage.settings.url}
    done = subprocess.run(
        [sys.executable, SCRIPT, "send", number],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, f"sent {number}\n"), done.stderr


@asynccontextmanager
async def receiving(stage: Stage) -> AsyncIterator[asyncio.StreamReader]:
    """Run the receiver, and yield what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPT,
        "receive",
        env=os.environ | {"RABBITMQ_URL": stage.settings.url},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


def counting(log: Log[Message], *failures: Exception) -> Service:
    service, left = Service("counting"), list(failures)

    @service.on(Queue("inventory_updates"), retry=fixed(3, 0.1))
    async def take(message: Message) -> None:
        log.append(message)
        if left:
            raise left.pop(0)

    return service


async def test_what_the_script_sends_reaches_a_handler_of_its_queue(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    async with rabbitmq.hosting(counting(log)):
        await asyncio.to_thread(send, rabbitmq, "4711")
        await log.reaches(1)
    assert (log[0].body, log[0].type, log[0].id_made_up) == (b"4711", "inventory_updates", True)
    assert await rabbitmq.ready("inventory_updates") == 0


async def test_what_the_script_sent_before_the_first_worker_came_waits_for_it(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    for number in ("4711", "4712"):
        await asyncio.to_thread(send, rabbitmq, number)
    async with rabbitmq.hosting(counting(log)):
        await log.reaches(2)
    assert [message.body for message in log] == [b"4711", b"4712"]


async def test_a_bare_number_is_retried_dead_lettered_and_replayed_as_it_came(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    async with rabbitmq.hosting(counting(log, ValueError(), Reject("no such order"))):
        await asyncio.to_thread(send, rabbitmq, "4711")
        (letter,) = await rabbitmq.letters("counting")
        assert (letter.failure.reason, letter.failure.attempts, letter.message.body) == ("rejected", 2, b"4711")
        await rabbitmq.transport.dead_letters.replay(letter)
        await log.reaches(3)
        await rabbitmq.bus.publish(StockCounted(sku="tea", left=2), to="inventory_updates")
        await log.reaches(4)
    assert [message.body for message in log] == [b"4711"] * 3 + [b'{"sku":"tea","left":2}']
    assert {(message.id, message.type) for message in log[:3]} == {(log[0].id, "inventory_updates")}
    assert await rabbitmq.letters("counting", 0) == []
    assert await rabbitmq.ready("inventory_updates") == 0


async def test_the_script_receives_what_is_published_to_its_queue(rabbitmq: Stage) -> None:
    await asyncio.to_thread(send, rabbitmq, "1")  # which declares the queue
    async with receiving(rabbitmq) as printed, asyncio.timeout(20):
        assert await printed.readline() == b"received 1\n"
        await rabbitmq.bus.publish(StockCounted(sku="tea", left=2), to="inventory_updates")
        assert await printed.readline() == b'received {"sku":"tea","left":2}\n'
        await rabbitmq.bus.publish(OrderNumber(number=4711), to="inventory_updates", delay=0.2)
        assert await printed.readline() == b"received 4711\n"


async def test_an_event_that_is_a_bare_number_comes_back_as_the_event(rabbitmq: Stage) -> None:
    numbers: Log[OrderNumber] = Log()
    service = Service("counting")

    @service.on(OrderNumber)
    async def take(number: OrderNumber) -> None:
        numbers.append(number)

    async with rabbitmq.hosting(service):
        await rabbitmq.bus.publish(OrderNumber(number=4711))
        await numbers.reaches(1)
    assert numbers == [OrderNumber(number=4711)]
