"""Declaring: one subscription after the other, and none waits for another that cannot be declared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from bus import Event, Service, Settings
from bus.discovery import named
from bus.transport import Subscription
from bus.transport.rabbitmq import topology
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.moves import Moves
from bus.transport.rabbitmq.supervisor import Supervisor
from bus.transport.rabbitmq.transport import RabbitMQTransport


class Placed(Event, type="order.placed"): ...


def subscription(name: str) -> Subscription:
    service = Service(name)

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    return service.handlers[0].subscription(named([service]))


async def test_a_queue_that_cannot_be_declared_keeps_no_other_from_being_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: asyncio.Queue[str] = asyncio.Queue()

    async def declare(_: object, names: object, subscriptions: Sequence[Subscription], *changes: object) -> object:
        await tried.put(subscriptions[0].service)
        if subscriptions[0].service == "stuck":
            raise TimeoutError
        return {}

    @asynccontextmanager
    async def administration(_: object) -> AsyncIterator[None]:
        yield

    async def there(_: object) -> bool:
        return True

    monkeypatch.setattr(topology, "declare", declare)
    monkeypatch.setattr(topology, "administration", administration)
    monkeypatch.setattr(Supervisor, "link", there)
    monkeypatch.setattr(Moves, "read", there)
    settings = Settings(url="amqp://guest:guest@127.0.0.1:1/")
    transport = RabbitMQTransport(settings, addresses(settings))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        stuck = tasks.create_task(transport.declare([subscription("stuck")]))
        assert await tried.get() == "stuck"
        await transport.declare([subscription("other")])
        stuck.cancel()


def test_a_retry_waits_for_as_long_as_its_step_says_and_a_mark_is_kept_for_a_week() -> None:
    for seconds in (0.05, 1, 86_400):
        arguments = topology.step_arguments(topology.Names(), "shop", timedelta(seconds=seconds))
        assert arguments["x-message-ttl"] == seconds * 1_000
    assert topology.SUSPECTS["x-max-age"] == "7D"
