"""Several hosts: whichever serves is found, and found again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from bus import Service
from bus.transport.rabbitmq import administration, consumer, moves, publisher, topology, transport
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy

from .outages import heal, refuse, swallow_all
from .stage import Log, Placed, staged


def steady(log: Log[int]) -> Service:
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    return service


async def test_l2_of_several_hosts_the_one_that_serves_is_found_and_the_next_one_after_it(
    broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    async with (
        Proxy(broker.port).running() as refusing,
        Proxy(broker.port).running() as swallowing,
        Proxy(broker.port).running() as first,
        Proxy(broker.port).running() as second,
    ):
        refuse(refusing)
        swallow_all(swallowing)
        ports = [f"127.0.0.1:{proxy.port}" for proxy in (refusing, swallowing, first, second)]
        url = f"amqp://guest:guest@{ports[0]},no-such-host.invalid:1,{','.join(ports[1:])}/{vhost_name}"
        async with staged("rabbitmq", url, publish_timeout=20) as stage, stage.hosting(steady(log)):
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
            for number, (gone, back) in enumerate(((first, second), (second, first)), 2):
                heal(back)
                refuse(gone)
                await stage.bus.publish(Placed(number=number))
                await log.holds(lambda seen, number=number: number in seen, f"number {number}")  # type: ignore[misc]


async def test_l2_of_several_hosts_it_is_not_the_first_that_everybody_is_connected_to(
    broker: Shared, vhost_name: str
) -> None:
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(Proxy(broker.port).running()) for _ in range(3)]
        url = f"amqp://guest:guest@{','.join(f'127.0.0.1:{host.port}' for host in hosts)}/{vhost_name}"
        for _ in range(16):  # by chance it would be one host for all of them once in 14 million runs
            stage = await stack.enter_async_context(staged("rabbitmq", url))
            await stage.bus.publish(Placed())
        assert [host.connections for host in hosts].count(0) < 2


async def test_p2_of_several_hosts_one_that_answers_but_confirms_nothing_is_left_for_the_next(
    broker: Shared, vhost_name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that is cut off from its cluster, and was not told to pause; its consumers get nothing either."""
    monkeypatch.setattr(publisher, "ASK_AFTER", 0.3)
    log: Log[int] = Log()
    async with Proxy(broker.port).running() as first, Proxy(broker.port).running() as second:
        url = f"amqp://guest:guest@127.0.0.1:{first.port},127.0.0.1:{second.port}/{vhost_name}"
        async with staged("rabbitmq", url, publish_timeout=15) as stage, stage.hosting(steady(log)):
            await stage.bus.publish(Placed(number=1))
            await asyncio.to_thread(broker.node.ctl, "eval", SUSPEND_PUBLISHERS.format(vhost=vhost_name))
            await stage.bus.publish(Placed(number=2))
            await log.holds(lambda seen: 2 in seen, "the second")
        left = [record.getMessage() for record in caplog.records if "confirms nothing" in record.getMessage()]
        assert sorted("link=publish" in line for line in left) == [False, True]
        assert "link=consume" in "".join(left)


SUSPEND_PUBLISHERS = (
    "[sys:suspend(proplists:get_value(pid, I)) || I <- rabbit_channel:info_all([pid, vhost, confirm]), "
    'proplists:get_value(vhost, I) =:= <<"{vhost}">>, proplists:get_value(confirm, I)].'
)


@pytest.mark.parametrize("bytes", [0, 600, 1_100])
async def test_l2_a_host_that_goes_silent_while_it_declares_is_left_for_the_next(
    proxy: Proxy, broker: Shared, vhost_name: str, bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "in_any_order", tuple)
    monkeypatch.setattr(topology, "ANSWER_WITHIN", 2)
    monkeypatch.setattr(moves, "READ_WITHIN", 1)  # the silent host is asked several times
    monkeypatch.setattr(administration, "FIRST_PATIENCE", 0.5)
    for bound in ("PROBE_AFTER", "ANSWER_WITHIN", "CONSUME_WITHIN"):
        monkeypatch.setattr(consumer, bound, 1)
    log: Log[int] = Log()
    host = f"127.0.0.1:{broker.port}"
    async with staged("rabbitmq", f"amqp://guest:guest@127.0.0.1:{proxy.port},{host}/{vhost_name}") as stage:
        await stage.bus.publish(Placed())
        proxy.cut_after(bytes, connections=100, swallow=True)
        async with stage.hosting(steady(log)):
            await stage.bus.publish(Placed(number=1))
            await log.reaches(1)
