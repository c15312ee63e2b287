"""How links and channels end, and what a broker in trouble does to them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bus.errors import Fate
from bus.transport.rabbitmq.channel import LinkLost
from bus.transport.rabbitmq.link import Link, LinkRefused
from bus.transport.rabbitmq.tls import Files
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .links import QUORUM, address_of, connected, consume, count, declare, fill, settle, to


# ends


async def test_what_was_settled_just_before_the_goodbye_is_acked(vhost: str) -> None:
    async with connected(vhost) as other:
        await declare(other, "q", QUORUM)
        await fill(other, "q", 20)
        async with connected(vhost) as link:
            _, inbox = await consume(link, "q", 20)
            for received in [await inbox.get() for _ in range(20)][:15]:
                settle(received)
        while await count(other, "q") < 5:  # the broker gives the unsettled back in its own time
            await asyncio.sleep(0.01)
        _, inbox = await consume(other, "q", 0)
        assert sorted([int(settle(await inbox.get())) for _ in range(5)]) == [15, 16, 17, 18, 19]
        assert await count(other, "q") == 0


async def test_settling_after_the_close_of_a_channel_harms_no_other(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        await fill(link, "q", 10)
        channel, inbox = await consume(link, "q", 10)
        received = [await inbox.get() for _ in range(10)]
        closing = asyncio.ensure_future(channel.aclose())
        await asyncio.sleep(0)
        for each in received:
            settle(each)
        assert await closing
        for each in received:
            settle(each)
        _, inbox = await consume(link, "q", 10)
        again = [await inbox.get() for _ in range(10)]
        assert sorted(settle(each) for each in again) == sorted(each.body.decode() for each in received)


async def test_a_wrong_password_is_refused_in_the_brokers_words(vhost: str) -> None:
    with pytest.raises(LinkRefused, match="403 ACCESS_REFUSED - Login was refused") as caught:
        await Link.connect(replace(address_of(vhost), password="swordfish"))
    assert "swordfish" not in str(caught.value)


async def test_a_wrong_virtual_host_is_refused_in_the_brokers_words(vhost: str) -> None:
    with pytest.raises(LinkRefused, match="530 NOT_ALLOWED - vhost missing not found"):
        await Link.connect(replace(address_of(vhost), vhost="missing"))


async def test_a_limit_of_connections_may_heal(broker: Shared, vhost: str, vhost_name: str) -> None:
    broker.node.ctl("set_vhost_limits", "-p", vhost_name, '{"max-connections": 0}')
    with pytest.raises(LinkLost, match="connection limit"):
        await Link.connect(address_of(vhost))


async def test_an_operator_who_closes_connections_is_quoted(broker: Shared, vhost: str, vhost_name: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        channel = await link.channel(confirm=True)
        await asyncio.to_thread(broker.node.ctl, "close_all_connections", "--vhost", vhost_name, "maintenance tonight")
        await link.closed.wait()
        assert isinstance(link.error, LinkLost)
        assert "320 CONNECTION_FORCED - maintenance tonight" in str(link.error)
        assert await channel.publish([to("q", "1")]).future == [Fate.UNKNOWN]


async def test_a_connection_that_is_reset_leaves_publishes_unknown_and_cancels_nobody(
    proxy: Proxy, vhost_name: str
) -> None:
    async with connected(proxy.url(vhost_name)) as link:
        await declare(link, "q", QUORUM)
        channel = await link.channel(confirm=True)
        proxy.blackhole(up=True, down=True)
        batches = [channel.publish([to("q", str(n))]) for n in range(100)]
        opening = asyncio.ensure_future(link.channel())
        await asyncio.sleep(0)
        proxy.drop()
        assert [await batch.future for batch in batches] == [[Fate.UNKNOWN]] * 100
        with pytest.raises(LinkLost, match="connection lost"):
            await opening


@pytest.mark.parametrize(("up", "down"), [(True, True), (False, True), (True, False)])
async def test_a_half_open_link_is_found_out(proxy: Proxy, vhost_name: str, up: bool, down: bool) -> None:
    async with connected(proxy.url(vhost_name), heartbeat=1) as link:
        channel = await link.channel(confirm=True)
        proxy.blackhole(up=up, down=down)
        batch = channel.publish([to("q", "1")])
        assert await batch.future == [Fate.UNKNOWN]
        assert isinstance(link.error, LinkLost)


async def test_tls_carries_messages_both_ways(broker: Shared, vhost: str) -> None:
    files = Files(broker.node.tls / "ca.pem", broker.node.tls / "client.pem", broker.node.tls / "client.key")
    link = await Link.connect(replace(address_of(vhost), port=broker.node.tls_port, tls=files))
    await declare(link, "q", QUORUM)
    await fill(link, "q", 500)
    channel, inbox = await consume(link, "q", 100)
    assert [settle(await inbox.get()) for _ in range(500)] == [str(n) for n in range(500)]
    assert await channel.aclose()
    await link.aclose()


# a broker in trouble


async def test_a_blocked_publisher_waits_and_stops_no_consumer(own_broker: Node) -> None:
    url = own_broker.url()
    async with connected(url) as publishing, connected(url) as consuming:
        await declare(consuming, "q", QUORUM)
        await fill(consuming, "q", 100)
        channel = await publishing.channel(confirm=True)
        await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "0.000001")
        # what is published before the alarm is taken as ever, and then nobody is told that there is one
        while "memory" not in await asyncio.to_thread(own_broker.ctl, "eval", "rabbit_alarm:get_alarms()."):
            await asyncio.sleep(0.05)
        first = channel.publish([to("q", "100", b"100")])
        while publishing.open_for_writing:
            await asyncio.sleep(0.01)

        async def publish(n: int) -> list[Fate]:
            await publishing.writable()
            return await channel.publish([to("q", str(n), str(n).encode())]).future

        waiting = [asyncio.ensure_future(publish(n)) for n in range(101, 200)]
        _, inbox = await consume(consuming, "q", 10)
        assert {settle(await inbox.get()) for _ in range(100)} == {str(n) for n in range(100)}
        assert not first.future.done()
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(own_broker.ctl, "set_vm_memory_high_watermark", "0.4")
        assert await first.future == [Fate.STORED]
        assert await asyncio.gather(*waiting) == [[Fate.STORED]] * 99
        assert {settle(await inbox.get()) for _ in range(100)} == {str(n) for n in range(100, 200)}


async def test_a_broker_killed_under_a_hundred_publishers_loses_nothing_that_it_confirmed(own_broker: Node) -> None:
    async with connected(own_broker.url()) as link:
        await declare(link, "q", QUORUM)
        channel = await link.channel(confirm=True)
        confirmed: set[str] = set()

        async def publisher(name: int) -> Fate:
            n = 0
            while True:
                id = f"{name}-{n}"
                fate, *_ = await channel.publish([to("q", id, id.encode())]).future
                if fate is not Fate.STORED:
                    return fate
                confirmed.add(id)
                n += 1

        publishers = [asyncio.ensure_future(publisher(n)) for n in range(100)]
        await asyncio.to_thread(own_broker.keep)
        while len(confirmed) < 1_000:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_broker.kill)
        assert set(await asyncio.gather(*publishers)) == {Fate.UNKNOWN}
        assert isinstance(link.error, LinkLost)
    await asyncio.to_thread(own_broker.start)
    async with connected(own_broker.url()) as link:
        _, inbox = await consume(link, "q", 1000)
        left = set(confirmed)
        while left:
            left.discard(settle(await inbox.get()))
