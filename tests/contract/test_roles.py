"""S1: each role of docs/security.md does its work with the rights of the page, needs each of them, and may no more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from pamqp import commands

from bus import (
    Context,
    Reject,
    Release,
    RetryAfter,
    Service,
    Settings,
    discovery,
    fixed,
    immediate,
)
from bus.transport.rabbitmq import delay, topology
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import ChannelClosed, Parcel
from bus.transport.rabbitmq.link import Link
from tests.broker.fixtures import Shared

from .roles import limited, rights, user
from .stage import WITHIN, Log, Placed, Shipped, Stage, staged


DAY = {"retried", "retried at once", "retried later", "from a handler", "a suspect"}


def inventory(done: Log[str]) -> Service:
    """Return a service whose worker does everything that a worker may have to do at its broker."""
    service = Service("inventory")

    @service.on(Placed, retry=fixed(3, 0.1))
    async def reserve(placed: Placed, context: Context) -> Shipped:
        if context.attempt == 1:
            raise ValueError
        done.append("retried")
        return Shipped()

    @service.on(Placed, retry=immediate(2))
    async def count(placed: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise ValueError
        done.append("retried at once")

    @service.on(Placed, retry=fixed(3, 5))
    async def later(placed: Placed, context: Context) -> None:
        if context.attempt == 1:
            raise RetryAfter(0.15)
        done.append("retried later")

    @service.on(Placed)
    async def refuse(placed: Placed) -> None:
        raise Reject("no")

    @service.on(Placed)
    async def doubt(placed: Placed) -> None:
        done.append("a suspect")

    @service.on(Shipped)
    async def tell(shipped: Shipped) -> None:
        done.append("from a handler")

    return service


async def apply(stage: Stage, service: Service) -> None:
    """Declare everything that a service may need, as an administrator does before its worker starts."""
    hosts, names = addresses(stage.settings), topology.Names(stage.settings.namespace)
    await stage.declare(service)
    await topology.declare_suspects(hosts, names, service.name)
    async for _ in delay.declare(hosts, names):
        pass


async def doubted(stage: Stage, service: Service) -> None:
    """Publish an event, and give one handler's copy back twice, so that it is a suspect."""
    await stage.bus.publish(Placed())
    (handler,) = [handler for handler in service.handlers if handler.name == "doubt"]
    for _ in range(2):
        async with stage.transport.consume(handler.subscription(discovery.named([service])), limit=1) as consumer:
            await (await anext(consumer)).settle(Release())


def refusals(logs: list[Any], name: str) -> list[str]:
    return [entry["error"] for entry in logs if f"refused for user '{name}'" in str(entry.get("error"))]


@pytest.mark.parametrize(("role", "namespace"), [("inventory_worker", ""), ("blue_worker", "blue")])
async def test_s1_a_worker_that_may_declare_nothing_does_everything_and_says_nothing(
    role: str, namespace: str, broker: Shared, vhost: str, vhost_name: str
) -> None:
    done: Log[str] = Log()
    service = inventory(done)
    async with staged("rabbitmq", vhost, namespace=namespace) as admin:
        await apply(admin, service)
        await doubted(admin, service)
        mine = await user(broker.node, vhost_name, role)
        with structlog.testing.capture_logs() as logs:
            async with staged("rabbitmq", mine, namespace=namespace) as stage, stage.hosting(service):
                await done.holds(lambda seen: set(seen) >= DAY, "a whole day")
                await stage.bus.publish(Placed(), delay=0.1)
                (letter,) = await admin.letters("inventory")
                await admin.transport.dead_letters.replay(letter)
                await admin.letters("inventory")
        assert not [entry for entry in logs if entry["log_level"] in ("warning", "error") and "attempt" not in entry]


async def test_s1_a_worker_needs_each_of_its_rights_and_says_which_one_it_lacks(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    service = inventory(Log())
    await apply(rabbitmq, service)
    name = f"less-{vhost_name}"
    for what, left in rights("inventory_worker").less():
        mine = await limited(broker.node, vhost_name, name, left)
        with structlog.testing.capture_logs() as logs:
            async with staged("rabbitmq", mine) as stage, stage.hosting(service, grace=0.1):
                await rabbitmq.bus.publish(Placed())
                async with asyncio.timeout(WITHIN):
                    while not (told := refusals(logs, name)):
                        await asyncio.sleep(0.02)
        assert "\n" not in told[0], what


async def test_s1_a_worker_reaches_nothing_of_another_service_and_changes_nothing(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    other = Service("other")

    @other.on(Placed, retry=fixed(2, 1))
    async def work(placed: Placed) -> None: ...

    await rabbitmq.declare(inventory(Log()), other)
    mine = await user(broker.node, vhost_name, "inventory_worker")
    for forbidden in (
        commands.Basic.Consume(queue="other.work"),
        commands.Basic.Consume(queue="other.dead", arguments={"x-stream-offset": "first"}),
        commands.Queue.Purge(queue="other.work"),
        commands.Queue.Bind(queue="inventory.tell", exchange="events", routing_key="#"),
        commands.Queue.Bind(queue="other.work", exchange="inventory.return", routing_key="#"),
        commands.Queue.Delete(queue="inventory.tell"),
        commands.Queue.Declare(queue="inventory.more", durable=True),
        commands.Exchange.Delete(exchange="events"),
        written("", "other.work"),
        written("other.retry", "1000.other.work"),
        written("other.return", "0.other.work"),
        written("other.dead", ""),
    ):
        await is_forbidden(mine, forbidden)


def written(exchange: str, key: str) -> Parcel:
    return Parcel("id", exchange, key, 0, b"", b"{}", mandatory=True)


async def is_forbidden(url: str, what: Any) -> None:
    """See that the broker refuses a command or a message for the want of a right."""
    link = await Link.connect(addresses(Settings(url=url))[0])
    try:
        channel = await link.channel(confirm=True)
        if isinstance(what, Parcel):
            await channel.publish([what]).future
            assert isinstance(channel.error, ChannelClosed), what
            assert channel.error.code == 403, what
        else:
            with pytest.raises(ChannelClosed) as raised:
                await channel.rpc(what)
            assert raised.value.code == 403, what
    finally:
        await link.aclose()
