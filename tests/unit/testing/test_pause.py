"""Pause and resume, in a Tester: what runs finishes, what waits stays, and the bus is settled all the same."""

from __future__ import annotations

import asyncio

import pytest

from bus import ConfigurationError, Event, Service, breaker, immediate
from bus.testing import Tester


class Placed(Event, type="order.placed"):
    number: int = 0


class Two:
    """A service with two handlers."""

    def __init__(self) -> None:
        self.service = Service("inventory", concurrency=2)
        self.reserved: list[int] = []
        self.noted: list[int] = []

        @self.service.on(Placed)
        async def reserve_stock(placed: Placed) -> None:
            await asyncio.sleep(5)
            self.reserved.append(placed.number)

        @self.service.on(Placed)
        async def note(placed: Placed) -> None:
            self.noted.append(placed.number)


async def publish(bus: Tester, size: int = 5) -> None:
    await bus.publish(*(Placed(number=number) for number in range(size)))


async def test_a_paused_handler_leaves_its_backlog_and_others_go_on() -> None:
    two = Two()
    async with Tester(two.service) as bus:
        bus.pause("inventory.reserve_stock")
        await publish(bus)
        await bus.settled()
        assert (two.reserved, sorted(two.noted)) == ([], [0, 1, 2, 3, 4])
        assert len(bus.transport.queues["inventory.reserve_stock"].ready) == 5
        bus.resume("inventory.reserve_stock")
        await bus.settled()
        assert sorted(two.reserved) == [0, 1, 2, 3, 4]


async def test_a_paused_service_is_every_handler_of_it() -> None:
    two = Two()
    async with Tester(two.service) as bus:
        bus.pause("inventory")
        await publish(bus)
        await bus.settled()
        assert (two.reserved, two.noted) == ([], [])
        bus.resume("inventory")
        await bus.settled()
        assert (len(two.reserved), len(two.noted)) == (5, 5)


async def test_what_runs_finishes_and_what_waits_for_a_slot_goes_back() -> None:
    two = Two()
    async with Tester(two.service) as bus:
        await publish(bus, 4)
        await bus.advance(1)
        bus.pause("inventory.reserve_stock")
        await bus.settled()
        assert two.reserved == [0, 1]
        assert len(bus.transport.queues["inventory.reserve_stock"].ready) == 2


async def test_a_pause_does_not_end_with_the_cool_down_of_a_breaker() -> None:
    runs: list[int] = []
    service = Service("shop", concurrency=1, middleware=[breaker(failures=1, cool_down=10)])

    @service.on(Placed, retry=immediate(1))
    async def work(placed: Placed) -> None:
        runs.append(placed.number)
        raise OSError

    async with Tester(service) as bus:
        await publish(bus)
        await bus.advance(1)
        bus.pause("shop")
        await bus.settled()
        await bus.advance(100)
        assert len(runs) == 1
        bus.resume("shop")
        await bus.settled()
        assert len(runs) == 5


async def test_a_crash_ends_a_pause() -> None:
    two = Two()
    async with Tester(two.service) as bus:
        bus.pause("inventory")
        await publish(bus)
        await bus.settled()
        await bus.crash()
        await bus.settled()
        assert len(two.noted) == 5


async def test_to_resume_what_is_not_paused_changes_nothing() -> None:
    two = Two()
    async with Tester(two.service) as bus:
        bus.resume("inventory.note")
        await publish(bus)
        await bus.settled()
        assert len(two.noted) == 5


@pytest.mark.parametrize("name", ["inventori", "inventory.", "inventory.reserve", "note", ""])
async def test_a_name_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    async with Tester(Two().service) as bus:
        for verb in (bus.pause, bus.resume):
            with pytest.raises(ConfigurationError, match=r"inventory, inventory\.note, inventory\.reserve_stock"):
                verb(name)
