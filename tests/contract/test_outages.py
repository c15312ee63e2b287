"""P2: publishing through outages."""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta

import pytest

from bus import BusUnavailable, Fate, Settings, connect_sync
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .outages import OUTAGES, Outage, Publishers, alarm, goes, heal, keeping, kept, refuse, swallow_down, talkative
from .stage import WITHIN, Placed, Stage, staged


def ids(count: int, name: str = "") -> list[str]:
    return [f"{name}{number}" for number in range(count)]


@pytest.mark.parametrize("outage", OUTAGES)
async def test_p2_publishing_waits_through_an_outage_that_is_shorter_than_its_timeout(
    proxy: Proxy, vhost: str, vhost_name: str, outage: Outage
) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=WITHIN) as stage:
        await stage.declare(keeping())
        async with Publishers(stage).running() as publishers:
            await publishers.go_on()
            outage(proxy)
            await asyncio.sleep(0.5)
            heal(proxy)
            await publishers.go_on()
    found = await kept(vhost)
    assert set(publishers.stored) == set(found)
    # only who was lost before its confirm is published again
    assert found.total() - len(found) <= (100 if outage is refuse else 0)


async def test_p2_what_waited_for_its_confirm_when_the_connection_was_lost_is_published_again(
    proxy: Proxy, vhost: str, vhost_name: str
) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=WITHIN) as stage:
        await stage.declare(keeping())
        await stage.bus.publish(Placed(), id="before")
        swallow_down(proxy)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.bus.publish(Placed(), id="on its way"))
            await asyncio.sleep(0.2)
            proxy.drop()
            heal(proxy)
    assert set(await kept(vhost)) == {"before", "on its way"}


@pytest.mark.parametrize("outage", OUTAGES)
async def test_p2_publishing_raises_in_an_outage_that_is_longer_than_its_timeout_and_works_after_it(
    proxy: Proxy, vhost: str, vhost_name: str, outage: Outage
) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=2) as stage:
        await stage.declare(keeping())
        await stage.bus.publish(Placed(), id="before")
        outage(proxy)
        async with asyncio.timeout(WITHIN):
            told = await asyncio.gather(
                *(stage.bus.publish(Placed(), id=id) for id in ids(100)),
                stage.bus.publish(Placed(), id="sent later", delay=60),
                return_exceptions=True,
            )
        assert all(isinstance(error, BusUnavailable) for error in told)
        fates = {id: fate for error in told if isinstance(error, BusUnavailable) for id, fate in error.fates.items()}
        assert fates == dict.fromkeys([*ids(100), "sent later"], Fate.UNKNOWN)
        heal(proxy)
        async with asyncio.timeout(WITHIN):
            while isinstance((await asyncio.gather(stage.bus.publish(Placed()), return_exceptions=True))[0], Exception):
                pass
        await stage.bus.publish(Placed(), id="after")
    assert set(await kept(vhost)) >= {"before", "after"}


async def test_p2_a_delayed_event_waits_for_its_broker_too(proxy: Proxy, vhost: str, vhost_name: str) -> None:
    refuse(proxy)
    async with (
        staged("rabbitmq", vhost) as there,
        staged("rabbitmq", proxy.url(vhost_name), publish_timeout=WITHIN) as stage,
        asyncio.TaskGroup() as tasks,
    ):
        await there.declare(keeping())
        publishing = tasks.create_task(stage.bus.publish(Placed(), id="late", delay=timedelta(milliseconds=100)))
        await asyncio.sleep(0.3)
        assert not publishing.done()
        heal(proxy)
        await publishing
        async with asyncio.timeout(WITHIN):
            while not (found := await kept(vhost)):
                await asyncio.sleep(0.05)
    assert found == {"late": 1}


async def test_p2_a_connection_that_an_operator_closes_costs_no_message(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    await rabbitmq.declare(keeping())
    async with Publishers(rabbitmq).running() as publishers:
        for _ in range(2):
            await publishers.go_on()
            await asyncio.to_thread(broker.node.ctl, "close_all_connections", "-p", vhost_name, "maintenance")
        await publishers.go_on()
    assert set(publishers.stored) == set(await kept(rabbitmq.settings.url))


def test_p2_code_that_is_not_async_waits_as_well(broker: Shared, vhost: str, vhost_name: str) -> None:
    async def prepare() -> None:
        async with staged("rabbitmq", vhost) as stage:
            await stage.declare(keeping())

    asyncio.run(prepare())
    with connect_sync(vhost, settings=Settings(publish_timeout=WITHIN)) as bus:
        bus.publish(Placed(), id="1")
        broker.node.ctl("close_all_connections", "-p", vhost_name, "maintenance")
        bus.publish(Placed(), id="2")
    assert set(asyncio.run(kept(vhost))) == {"1", "2"}


@pytest.mark.parametrize("outage", [refuse, swallow_down])
async def test_p2_what_was_reported_as_stored_is_stored_though_the_publisher_is_killed(
    proxy: Proxy, vhost: str, vhost_name: str, outage: Outage
) -> None:
    async with staged("rabbitmq", vhost) as stage:
        await stage.declare(keeping())
    process = await talkative(proxy.url(vhost_name), 50, 0)
    assert process.stdout is not None
    told = [(await process.stdout.readline()).decode().strip()]
    for _ in range(2):
        outage(proxy)
        await asyncio.sleep(0.2)
        heal(proxy)
        told.append((await process.stdout.readline()).decode().strip())
    outage(proxy)
    process.send_signal(signal.SIGKILL)
    rest = (await process.stdout.read()).decode()
    await process.wait()
    # the kill may have come in the middle of the last line
    told += rest.rpartition("\n")[0].splitlines()
    found = await kept(vhost)
    assert set(told) - {""} <= set(found)
    assert len(told) >= 3


async def test_p2_through_an_alarm_and_a_restart_of_the_broker(own_broker: Node) -> None:
    url = own_broker.url()
    async with (
        staged("rabbitmq", url, publish_timeout=60) as patient,
        staged("rabbitmq", url, publish_timeout=0.5) as hasty,
    ):
        await patient.declare(keeping())
        await asyncio.to_thread(own_broker.keep)
        process = await talkative(url, 20, 20)
        assert process.stdout is not None
        told = (await process.stdout.read()).decode().splitlines()
        assert len(told) == 400
        async with Publishers(patient).running() as publishers:
            await publishers.go_on()
            async with alarm(own_broker):
                with pytest.raises(BusUnavailable, match="low on memory"):
                    async with asyncio.timeout(WITHIN):
                        while True:
                            await hasty.bus.publish(Placed())
                silent = await talkative(url, 1, 1, timeout=0.5)
                assert await silent.communicate() == (b"", None)
            async with asyncio.timeout(WITHIN):
                while not await goes(hasty, id="after the alarm"):
                    pass
            await publishers.go_on()
            await asyncio.to_thread(own_broker.ctl, "stop_app")
            with pytest.raises(BusUnavailable):
                await hasty.bus.publish(Placed())
            await asyncio.to_thread(own_broker.ctl, "start_app")
            await publishers.go_on()
        async with asyncio.timeout(WITHIN):
            while not await goes(hasty):
                pass
    assert {*told, "after the alarm", *publishers.stored} <= set(await kept(url))
