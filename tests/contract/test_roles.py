"""S1: each role of docs/security.md does its work with the rights of the page, needs each of them, and may no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import structlog
from pamqp import commands

from bus import (
    AccessRefused,
    Context,
    Event,
    Fate,
    Message,
    PublishRefused,
    Queue,
    Reject,
    Release,
    RetryAfter,
    Service,
    Settings,
    Unroutable,
    connect_sync,
    discovery,
    fixed,
    immediate,
)
from bus.transport.rabbitmq import topology
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import ChannelClosed, Parcel
from bus.transport.rabbitmq.link import Link
from bus.transport.rabbitmq.supervisor import Backoff
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy

from .roles import Rights, limited, rights, user
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
    known = discovery.named([service])
    assert not await stage.transport.topology.apply("contract", [each.subscription(known) for each in service.handlers])


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
                (letter,) = await admin.letters("inventory")
                await admin.transport.dead_letters.replay(letter)
                await admin.letters("inventory")
                await stage.bus.publish(Placed(), delay=0.1)
        assert not [entry for entry in logs if entry["log_level"] in ("warning", "error") and "attempt" not in entry]


async def test_s1_a_worker_that_declares_by_itself_needs_nobody(broker: Shared, vhost_name: str) -> None:
    done: Log[str] = Log()
    service = inventory(done)
    mine = await user(broker.node, vhost_name, "inventory_owner")
    async with staged("rabbitmq", mine) as stage:
        await stage.declare(service)
        await doubted(stage, service)
        with structlog.testing.capture_logs() as logs:
            async with stage.hosting(service):
                await done.holds(lambda seen: set(seen) >= DAY, "a whole day")
        assert not [entry for entry in logs if entry["event"] in ("suspects run unmarked", "settling waits")]
    for forbidden in (
        commands.Queue.Declare(queue="other.work", durable=True),
        commands.Basic.Consume(queue="other.work"),
        written("", "other.work"),
    ):
        await is_forbidden(mine, forbidden)


async def test_s1_what_goes_beyond_a_role_needs_the_right_that_the_page_names(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[str] = Log()
    service = Service("inventory")

    @service.on(Queue("updates"))
    async def work(message: Message) -> None:
        log.append(message.body.decode())

    await apply(rabbitmq, service)
    link = await Link.connect(addresses(rabbitmq.settings)[0])
    await (await link.channel()).rpc(commands.Queue.Declare(queue="updates", durable=True))
    await link.aclose()
    worker = rights("inventory_worker")
    reading = replace(worker, read=worker.read.replace("^(", "^(updates|"))
    mine = await limited(broker.node, vhost_name, f"worker-{vhost_name}", reading)
    sending = Rights("^$", r"^amq\.default$", "^$")
    later = Rights("^$", r"^(delay\.[0-9]+|updates)$", r"^delay\.return$")
    async with staged("rabbitmq", mine) as stage, stage.hosting(service):
        for allowed, delay in ((sending, 0), (later, 0.1)):
            url = await limited(broker.node, vhost_name, f"sender-{vhost_name}", allowed)
            async with staged("rabbitmq", url) as sender:
                await sender.bus.publish(Placed(), to="updates", delay=delay)
        await log.reaches(2)


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


@pytest.mark.parametrize(("role", "namespace"), [("shop_publisher", ""), ("blue_publisher", "blue")])
async def test_s1_a_publisher_may_write_to_events_and_do_nothing_else(
    role: str, namespace: str, broker: Shared, vhost: str, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("inventory")

    @service.on(Placed)
    async def reserve(placed: Placed) -> None:
        log.append(placed.number)

    mine = await user(broker.node, vhost_name, role)
    async with (
        staged("rabbitmq", vhost, namespace=namespace) as admin,
        admin.hosting(service),
        Proxy(broker.port).running() as proxy,
        staged("rabbitmq", mine.replace(str(broker.port), str(proxy.port)), namespace=namespace) as stage,
    ):
        await stage.bus.publish(Placed(number=1), required=True)
        with pytest.raises(Unroutable):
            await stage.bus.publish(Shipped(), required=True)
        proxy.refuse(True)
        proxy.drop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.bus.publish(Placed(number=2)))
            proxy.refuse(False)

        def plain() -> None:
            with connect_sync(settings=replace(stage.settings, url=mine)) as bus:
                bus.publish(Placed(number=3))

        await asyncio.to_thread(plain)
        await log.reaches(3)
        await apply(admin, service)
        for options, lacks in (
            ({"delay": 0.1}, "delay.0"),
            ({"to": "inventory.reserve"}, "amq.default"),
            ({"to": "inventory.reserve", "delay": 0.1}, "inventory.reserve"),
        ):
            with pytest.raises(AccessRefused) as raised:
                await stage.bus.publish(Placed(), **options)  # type: ignore[arg-type]
            told = str(raised.value)
            assert lacks in told and f"refused for user '{role}-{vhost_name}'" in told and "\n" not in told
    for forbidden in (
        commands.Basic.Consume(queue=f"{namespace}.inventory.reserve".lstrip(".")),
        commands.Queue.Declare(queue="more", durable=True),
        commands.Queue.Declare(exclusive=True),
        written(f"{namespace}.inventory.dead".lstrip("."), ""),
    ):
        await is_forbidden(mine, forbidden)


async def test_s1_a_publisher_with_delays_needs_both_of_its_rights(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("late")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    mine = await user(broker.node, vhost_name, "shop_scheduler")
    async with rabbitmq.hosting(service):
        async with staged("rabbitmq", mine) as stage:
            with pytest.raises(AccessRefused, match=r"python app\.py topology apply"):
                await stage.bus.publish(Placed(), delay=0.1)
            await apply(rabbitmq, service)
            await stage.bus.publish(Placed(number=1), delay=0.1)
            await stage.bus.publish(Placed(number=2))
            await log.reaches(2)
        refused = []
        for _, left in rights("shop_scheduler").less():
            less = await limited(broker.node, vhost_name, f"less-{vhost_name}", left)
            async with staged("rabbitmq", less) as stage:
                for wait in (0, 0.1):
                    try:
                        await stage.bus.publish(Placed(), delay=wait)
                    except AccessRefused:
                        refused.append(wait)
        assert refused == [0, 0.1]


async def test_s1_topic_permissions_hold_a_publisher_to_some_types_and_refuse_nothing_else(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    class Paid(Event, type="payment.paid"): ...

    log: Log[str] = Log()
    service = Service("all")

    @service.on("#")
    async def work(message: Message) -> None:
        log.append(message.type)

    await rabbitmq.declare(service)
    mine = await user(broker.node, vhost_name, "order_publisher")
    async with rabbitmq.hosting(service), staged("rabbitmq", mine) as stage:
        results = await asyncio.gather(
            *(stage.bus.publish(event) for event in (Placed(), Paid(), Shipped())), return_exceptions=True
        )
        assert [isinstance(result, AccessRefused) for result in results] == [False, True, False]
        assert "access to topic 'payment.paid' in exchange 'events'" in str(results[1])
        with pytest.raises(PublishRefused) as raised:
            await stage.bus.publish(Placed(), Paid(), Shipped())
        stored, refused, stored_too = raised.value.fates.values()
        assert (stored, refused, stored_too) == (Fate.STORED, Fate.REFUSED, Fate.STORED)
        await log.reaches(4)
        assert "payment.paid" not in log


def hopeless(number: int) -> Service:
    service = Service(f"hopeless{number}")

    @service.on(Placed)
    async def refuse(placed: Placed) -> None:
        raise Reject("no")

    return service


async def operate(stage: Stage, admin: Stage, service: str) -> None:
    """Do everything to dead letters that an operator may: three letters are there."""
    replayed, edited, discarded = await admin.letters(service, 3)
    dead = stage.transport.dead_letters
    assert len([letter async for letter in dead.browse(service)]) >= 3
    await dead.replay(replayed)
    await dead.edit(edited, Placed(number=9).model_dump_json().encode())
    packed = await dead.packed(discarded)
    await dead.discard(discarded)
    assert await dead.restore(service, packed)
    for _ in range(2):  # the second time it is the first generation with a number that goes
        left, _ = await dead.compact(service)
        assert left


async def test_s1_an_operator_of_dead_letters_needs_each_of_its_rights_and_may_no_more(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    fewer = list(rights("operator").less())
    services = [hopeless(number) for number in range(len(fewer) + 1)]
    async with rabbitmq.hosting(*services):
        for number in range(3):
            await rabbitmq.bus.publish(Placed(number=number))
        mine = await user(broker.node, vhost_name, "operator")
        async with staged("rabbitmq", mine) as stage:
            await operate(stage, rabbitmq, services[-1].name)

        async def with_less(number: int) -> None:
            what, left = fewer[number]
            name = f"less-{number}-{vhost_name}"
            async with staged("rabbitmq", await limited(broker.node, vhost_name, name, left)) as stage:
                try:
                    await operate(stage, rabbitmq, services[number].name)
                except AccessRefused as error:
                    assert f"refused for user '{name}'" in str(error) and "\n" not in str(error)
                else:
                    raise AssertionError(f"nothing was missed: {what}")

        await asyncio.gather(*map(with_less, range(len(fewer))))
    for forbidden in (
        commands.Basic.Consume(queue="hopeless0.refuse"),
        commands.Queue.Delete(queue="hopeless0.refuse"),
        commands.Queue.Declare(queue="more", durable=True),
        commands.Exchange.Declare(exchange="more", durable=True),
        written("events", "order.placed"),
        written("hopeless0.retry", "0.hopeless0.refuse"),
    ):
        await is_forbidden(mine, forbidden)


async def test_s1_an_administrator_declares_everything_and_with_less_not(
    vhost: str, broker: Shared, vhost_name: str
) -> None:
    service = inventory(Log())
    subscriptions = [handler.subscription(discovery.named([service])) for handler in service.handlers]
    for _, left in rights("topology_admin").less():
        less = await limited(broker.node, vhost_name, f"less-{vhost_name}", left)
        found = await topology.declare_when_up(
            addresses(Settings(url=less)), topology.Names(), subscriptions, Backoff()
        )
        assert found
    async with staged("rabbitmq", await user(broker.node, vhost_name, "topology_admin")) as stage:
        await apply(stage, service)
    worker = await user(broker.node, vhost_name, "inventory_worker")
    async with staged("rabbitmq", worker) as stage, stage.hosting(service) as hosted:
        assert hosted.worker.consuming == len(subscriptions)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (commands.Queue.Delete(queue="inventory.reserve"), "no queue 'inventory.reserve'"),
        (commands.Queue.Delete(queue="inventory.retry.100"), "no queue 'inventory.retry.100'"),
        (commands.Exchange.Delete(exchange="inventory.return"), "no exchange 'inventory.return'"),
        (commands.Exchange.Delete(exchange="events"), "no exchange 'events'"),
    ],
)
async def test_s1_what_is_missing_at_the_start_is_one_line_that_names_it_and_the_remedy(
    gone: Any, told: str, rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    service = Service("inventory")

    @service.on(Placed, retry=fixed(2, 0.1))
    async def reserve(placed: Placed) -> None: ...

    await rabbitmq.declare(service)
    link = await Link.connect(addresses(rabbitmq.settings)[0])
    await (await link.channel()).rpc(gone)
    await link.aclose()
    mine = await limited(broker.node, vhost_name, f"worker-{vhost_name}", rights("inventory_worker"))
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", mine) as stage, stage.hosting(service) as hosted, asyncio.timeout(WITHIN):
            await asyncio.wait([hosted.task])
    (line,) = [entry for entry in logs if entry["log_level"] in ("warning", "error")]
    assert line["event"] == "handler stopped"
    assert told in line["error"] and "python app.py topology apply" in line["error"] and "\n" not in line["error"]


async def test_s1_what_goes_missing_is_waited_for_and_told_once(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    service = Service("inventory")

    @service.on(Placed)
    async def reserve(placed: Placed) -> None:
        log.append(placed.number)

    await rabbitmq.declare(service)
    mine = await limited(broker.node, vhost_name, f"worker-{vhost_name}", rights("inventory_worker"))
    link = await Link.connect(addresses(rabbitmq.settings)[0])
    with structlog.testing.capture_logs() as logs:
        async with staged("rabbitmq", mine) as stage, stage.hosting(service):
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
            await (await link.channel()).rpc(commands.Queue.Delete(queue="inventory.reserve"))
            await until(lambda: len([entry for entry in logs if entry["event"] == "not declared"]) == 1)
            await rabbitmq.declare(service)
            await until(lambda: any(entry["event"] == "consuming again" for entry in logs))
            await stage.bus.publish(Placed(number=2))
            await log.reaches(2)
    await link.aclose()
    (line,) = [entry for entry in logs if entry["event"] == "not declared"]
    assert "no queue 'inventory.reserve'" in line["error"] and "python app.py topology apply" in line["error"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.02)
