"""P: publishing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import aio_pika
import pytest

from bus import (
    AccessRefused,
    BusUnavailable,
    Context,
    Event,
    Fate,
    Message,
    MessageTooLarge,
    PublishRefused,
    Service,
    Settings,
    Unroutable,
    connect,
    immediate,
)
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .outages import goes
from .stage import WITHIN, Log, Placed, Shipped, Stage, staged


class Unwanted(Event, type="nobody.wants"):
    """What no service here subscribes to."""


def listening(log: Log[Message], *patterns: str) -> Service:
    service = Service("listener")

    @service.on(*(patterns or ("#",)))
    async def listen(message: Message) -> None:
        log.append(message)

    return service


async def test_p1_what_was_published_survives_the_end_of_the_process(rabbitmq: Stage) -> None:
    log: Log[Message] = Log()
    await rabbitmq.declare(listening(log))
    code = """
import asyncio, os
from bus import connect
from tests.contract.stage import Placed
async def main():
    async with connect() as bus:
        await bus.publish(*(Placed(number=n) for n in range(50)))
        os._exit(0)
asyncio.run(main())
"""
    environment = os.environ | {"BUS_URL": rabbitmq.settings.url}
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], env=environment, check=True, timeout=30)
    async with rabbitmq.hosting(listening(log)):
        await log.reaches(50)


async def test_p1_what_was_published_survives_the_death_of_the_broker(own_broker: Node) -> None:
    log: Log[Message] = Log()
    async with staged("rabbitmq", own_broker.url(), publish_timeout=30) as stage:
        await stage.declare(listening(log))
        await asyncio.to_thread(own_broker.keep)
        sent = [id for number in range(100) for id in await stage.bus.publish(Placed(number=number))]
        await asyncio.to_thread(own_broker.kill)
        await asyncio.to_thread(own_broker.start)
        async with stage.hosting(listening(log)):
            await log.holds(lambda seen: {message.id for message in seen} >= set(sent), "every message")


async def test_p1_publishing_raises_within_its_timeout_and_tells_the_fate_of_each_id(
    proxy: Proxy, vhost_name: str
) -> None:
    proxy.refuse(True)
    async with connect(proxy.url(vhost_name), settings=Settings(publish_timeout=0.3)) as bus:
        with pytest.raises(BusUnavailable, match="publish again with id=") as raised:
            async with asyncio.timeout(WITHIN):
                await bus.publish(Placed(), id="mine")
    assert raised.value.fates == {"mine": Fate.UNKNOWN}


async def test_p1_a_publish_whose_confirm_never_comes_is_unknown_and_the_bus_works_after_it(
    proxy: Proxy, vhost_name: str
) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=0.4) as stage:
        log: Log[Message] = Log()
        await stage.declare(listening(log))
        async with asyncio.timeout(WITHIN):
            while not await goes(stage):
                pass
        proxy.blackhole(up=False, down=True)
        with pytest.raises(BusUnavailable):
            await stage.bus.publish(Placed(number=2), id="two")
        proxy.blackhole(up=False, down=False)
        async with asyncio.timeout(WITHIN):
            while not await goes(stage, id="two"):
                pass
        async with stage.hosting(listening(log)):
            await log.holds(lambda seen: any(message.id == "two" for message in seen), "the second")


async def test_p1_what_a_full_queue_refuses_raises_and_says_so(rabbitmq: Stage) -> None:
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await channel.declare_queue("full", durable=True, arguments=arguments)
    with pytest.raises(PublishRefused) as raised:
        await rabbitmq.bus.publish(Placed(), id="mine", to="full")
    assert raised.value.fates == {"mine": Fate.REFUSED}
    await rabbitmq.bus.publish(Placed())


async def test_p3_an_event_that_nobody_wants_is_legal(stage: Stage) -> None:
    assert len(await stage.bus.publish(Placed())) == 1


async def test_p3_required_raises_where_nobody_subscribes(stage: Stage) -> None:
    with pytest.raises(Unroutable) as raised:
        await stage.bus.publish(Placed(), required=True, id="lost")
    assert raised.value.fates == {"lost": Fate.UNROUTABLE}
    await stage.declare(listening(Log()))
    await stage.bus.publish(Placed(), required=True)


async def test_p3_an_address_that_is_no_queue_is_unroutable(stage: Stage) -> None:
    with pytest.raises(Unroutable, match=r"there is no queue 'nobody\.here'"):
        await stage.bus.publish(Placed(), to="nobody.here")


async def test_p3_what_else_was_published_with_what_nobody_wants_is_stored_all_the_same(stage: Stage) -> None:
    came: Log[Message] = Log()
    shop = Service("shop")

    @shop.on(Placed, retry=immediate(3))
    async def place(placed: Placed, context: Context) -> None:
        context.publish(Shipped(number=1))
        context.publish(Placed(), to="nobody.here")

    async with stage.hosting(shop, listening(came, "order.shipped")):
        with pytest.raises(Unroutable) as raised:
            await stage.bus.publish(Shipped(number=2), Unwanted(), required=True)
        assert list(raised.value.fates.values()) == [Fate.STORED, Fate.UNROUTABLE]
        await came.reaches(1)
        await stage.bus.publish(Placed())
        await stage.letters("shop")
        await came.reaches(4)
    assert len({message.id for message in came}) == 2


async def test_p4_messages_wait_for_the_worker_once_their_subscription_is_declared(stage: Stage) -> None:
    log: Log[Message] = Log()
    await stage.declare(listening(log))
    ids = await stage.bus.publish(*(Placed(number=number) for number in range(20)))
    async with stage.hosting(listening(log)):
        await log.reaches(20)
    assert [message.id for message in log] == ids


async def test_p4_a_worker_that_starts_before_its_broker_waits_for_it(proxy: Proxy, vhost_name: str) -> None:
    log: Log[Message] = Log()
    proxy.refuse(True)
    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, asyncio.TaskGroup() as tasks:

        async def work() -> None:
            async with stage.hosting(listening(log)):
                await stage.bus.publish(Placed())
                await log.reaches(1)

        tasks.create_task(work())
        await asyncio.sleep(0.5)
        assert log == []
        proxy.refuse(False)


@pytest.mark.parametrize(
    ("wrong", "told"), [("guest:wrong@", "ACCESS_REFUSED"), ("guest:guest@{host}/missing", "NOT_ALLOWED|not found")]
)
async def test_p4_a_refused_login_or_virtual_host_is_an_error(vhost: str, wrong: str, told: str) -> None:
    host = vhost.rpartition("@")[2].partition("/")[0]
    url = f"amqp://{wrong}{host}/" if "{host}" not in wrong else f"amqp://{wrong.format(host=host)}"
    async with staged("rabbitmq", url) as stage:
        with pytest.raises(AccessRefused, match=told):
            async with asyncio.timeout(WITHIN):
                await stage.declare(listening(Log()))
        with pytest.raises(AccessRefused):
            await stage.bus.publish(Placed())


async def test_p5_what_comes_out_is_what_went_in(stage: Stage) -> None:
    log: Log[Message] = Log()
    note = 'snow ☃, quotes "", a nul \x00 and 👩‍🚀'
    async with stage.hosting(listening(log)):
        (id,) = await stage.bus.publish(Placed(number=7, note=note), headers={"tenant": "åäö", "empty": "x" * 3000})
        await log.reaches(1)
    (message,) = log
    assert (message.id, message.type, message.version, message.source) == (id, "order.placed", 1, "/contract")
    assert message.correlation_id == id
    assert message.causation_id is None
    assert dict(message.headers) == {"tenant": "åäö", "empty": "x" * 3000}
    assert Placed.model_validate_json(message.body) == Placed(number=7, note=note)
    assert message.time.tzinfo is not None
    assert message.problems == ()


async def test_p5_an_event_that_is_too_large_never_leaves(stage: Stage) -> None:
    with pytest.raises(MessageTooLarge, match="BUS_MAX_MESSAGE_BYTES"):
        await stage.bus.publish(Placed(note="x" * (1 << 20)))


async def test_p5_headers_that_no_copy_could_carry_never_leave(stage: Stage) -> None:
    with pytest.raises(MessageTooLarge, match="bytes of headers"):
        await stage.bus.publish(Placed(), headers={"big": "x" * 33_000})


async def test_p5_a_handler_whose_headers_are_too_large_has_failed_and_holds_nothing_up(stage: Stage) -> None:
    service = Service("verbose")

    @service.on(Placed, retry=immediate(2))
    async def work(placed: Placed, context: Context) -> None:
        context.publish(Shipped(), headers={"big": "x" * 200_000})

    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("verbose")
    assert (letter.failure.error_type, letter.failure.attempts) == ("MessageTooLarge", 2)


async def test_p5_an_effect_names_its_cause_and_keeps_the_correlation(stage: Stage) -> None:
    log: Log[Message] = Log()
    service = Service("shipper")

    @service.on(Placed)
    async def ship(placed: Placed) -> Shipped:
        return Shipped(number=placed.number)

    async with stage.hosting(service, listening(log, "order.shipped")):
        (id,) = await stage.bus.publish(
            Placed(), headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        )
        await log.reaches(1)
    (message,) = log
    assert (message.causation_id, message.correlation_id, message.hops) == (id, id, 1)
    assert message.source == "/contract/shipper"
    assert message.headers["traceparent"].startswith("00-4bf9")


async def test_p6_a_delayed_event_is_not_early(stage: Stage) -> None:
    log: Log[tuple[int, float]] = Log()
    loop = asyncio.get_running_loop()
    service = Service("late")

    @service.on(Placed)
    async def late(placed: Placed) -> None:
        log.append((placed.number, loop.time()))

    async with stage.hosting(service):
        await stage.bus.publish(
            Placed(number=0), delay=0.1
        )  # the first delay of all declares the way, and takes its time
        await log.reaches(1)
        sent = {}
        for number, delay in ((1, 0.6), (2, 0.3), (3, -5)):
            sent[number] = loop.time() + delay
            await stage.bus.publish(Placed(number=number), delay=delay)
        await log.reaches(4)
    assert sorted(number for number, _ in log) == [0, 1, 2, 3]
    assert all(at >= sent[number] for number, at in log[1:])
