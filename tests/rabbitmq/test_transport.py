"""The RabbitMQ transport as a whole: what only a real broker shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bus import Ack, BusUnavailable, Release, Service, Settings, Unroutable, connect, discovery
from bus.transport import Subscription
from bus.transport.rabbitmq import administration as plane
from bus.transport.rabbitmq.address import addresses
from tests.broker.proxy import Proxy
from tests.contract.stage import Log, Placed, staged


QUIET = Subscription(service="prefetching", handler="work", patterns=("order.placed",))


async def test_a_subscription_starts_at_prefetch_one_and_opens_up_after_a_first_delivery_that_is_no_suspect(
    vhost: str,
) -> None:
    async with staged("rabbitmq", vhost) as stage:
        await stage.transport.declare([QUIET])
        for number in range(20):
            await stage.bus.publish(Placed(number=number))
        async with stage.transport.consume(QUIET, limit=8) as consumer:
            deliveries = [await anext(consumer) for _ in range(8)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(consumer)
        assert all(delivery.redelivered == 0 for delivery in deliveries)


async def test_a_message_that_came_back_twice_is_handed_out_alone(vhost: str) -> None:
    async with staged("rabbitmq", vhost) as stage:
        await stage.transport.declare([QUIET])
        for number in range(20):
            await stage.bus.publish(Placed(number=number))
        for _ in range(2):
            async with stage.transport.consume(QUIET, limit=1) as consumer:
                await (await anext(consumer)).settle(Release())
        async with stage.transport.consume(QUIET, limit=8) as consumer:
            suspect = await anext(consumer)
            assert suspect.redelivered >= 2
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(consumer)


async def test_limit_stops_gives_back_and_starts_again(vhost: str) -> None:
    async with staged("rabbitmq", vhost) as stage:
        await stage.transport.declare([QUIET])
        for number in range(30):
            await stage.bus.publish(Placed(number=number))
        seen: set[str] = set()
        async with (
            stage.transport.consume(QUIET, limit=4) as first,
            stage.transport.consume(QUIET, limit=4) as second,
        ):
            held = [await anext(first) for _ in range(4)]
            await first.limit(0)
            waiting = asyncio.ensure_future(anext(first))
            for _ in range(26):
                delivery = await anext(second)
                seen.add(delivery.message.id)
                await delivery.settle(Ack())
            assert not waiting.done()
            for delivery in held:
                seen.add(delivery.message.id)
                await delivery.settle(Ack())
            for size in (1, 7, 0, 3):
                await first.limit(size)
            await second.limit(0)
            await stage.bus.publish(Placed(number=99))
            await (await waiting).settle(Ack())
        assert len(seen) == 30


async def test_a_stop_in_the_midst_of_a_lowered_limit_gives_back_what_nobody_took(vhost: str) -> None:
    async with staged("rabbitmq", vhost) as stage:
        await stage.transport.declare([QUIET])
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        async with (
            stage.transport.consume(QUIET, limit=8) as first,
            stage.transport.consume(QUIET, limit=0) as second,
        ):
            held = {(await anext(first)).message.id for _ in range(3)}
            lowering = asyncio.ensure_future(first.limit(1))
            await asyncio.sleep(0)
            lowering.cancel()
            await first.limit(0)
            await second.limit(20)
            async with asyncio.timeout(10):
                others = {(await anext(second)).message.id for _ in range(17)}
        assert len(held | others) == 20


async def test_what_a_body_of_connect_raises_reaches_the_caller_as_it_is(vhost: str) -> None:
    with pytest.raises(Unroutable):
        async with connect(vhost) as bus:
            await bus.publish(Placed(), required=True)


async def test_a_peer_that_is_no_broker_is_named() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(web, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings = Settings(publish_timeout=0.3)
        async with connect(f"amqp://127.0.0.1:{port}/", settings=settings) as bus:
            with pytest.raises(BusUnavailable, match=r"does not speak AMQP 0-9-1: it began with b'HTTP/1.1 400"):
                await bus.publish(Placed())


async def test_a_namespace_keeps_environments_apart(vhost: str) -> None:
    @asynccontextmanager
    async def environment(namespace: str, log: Log[int]) -> AsyncIterator[object]:
        service = Service("same")

        @service.on(Placed)
        async def work(placed: Placed) -> None:
            log.append(placed.number)

        async with staged("rabbitmq", vhost, namespace=namespace) as stage, stage.hosting(service):
            yield stage.bus

    red: Log[int] = Log()
    blue: Log[int] = Log()
    async with environment("red", red) as bus_of_red, environment("blue", blue) as bus_of_blue:
        await bus_of_red.publish(Placed(number=1))  # type: ignore[attr-defined]
        await bus_of_blue.publish(Placed(number=2), delay=0.2)  # type: ignore[attr-defined]
        await red.reaches(1)
        await blue.reaches(1)
    assert (red, blue) == ([1], [2])


def test_the_policys_steps_and_the_step_for_deploys_are_declared() -> None:
    service = Service("steps")

    @service.on(Placed)
    async def work(placed: Placed) -> None: ...

    (handler,) = service.handlers
    delays = handler.subscription(discovery.named([service])).delays
    assert [delay.total_seconds() for delay in delays] == [0.5, 2, 8, 10, 32, 128]


async def test_a_declaration_whose_connection_is_lost_is_neither_cancelled_nor_an_accident(
    proxy: Proxy, vhost_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane, "HEARTBEAT", 1)
    hosts = addresses(Settings(url=proxy.url(vhost_name)))
    with pytest.raises(ConnectionError):
        async with plane.administration(hosts) as connection:
            channel = await connection.channel()
            proxy.drop()
            while not channel.is_closed:
                await asyncio.sleep(0.01)
            await channel.declare_queue("q")
    with pytest.raises(ConnectionError):
        async with plane.administration(hosts) as connection:
            channel = await connection.channel()
            proxy.blackhole(up=False, down=True)
            await channel.declare_queue("q")
