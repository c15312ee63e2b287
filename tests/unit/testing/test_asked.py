"""What a Tester is made of and asked for: a slip is told at once, and passes no test for nothing."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import pytest

from bus import App, ConfigurationError, Event, Message, Service
from bus.testing import Tester


class Booked(Event, type="room.booked"):
    number: int = 1


class Freed(Event, type="room.freed"):
    pass


rooms = Service("rooms")
kitchen = Service("kitchen")


@rooms.on(Booked)
async def follow(booked: Booked) -> Freed:
    return Freed()


@kitchen.on(Booked)
async def cook(booked: Booked) -> None: ...


class Desk:
    async def note(self, message: Message) -> None: ...


HERE = sys.modules[__name__]
LAST = __name__.rpartition(".")[2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((), "Tester() hosts no service, so nothing that is published would be handled: write Tester(inventory)"),
        ((HERE,), f"{__name__} is a module: write Tester({LAST}.rooms, {LAST}.kitchen)"),
        ((ModuleType("bare"),), "bare is a module: no service is in it"),
        (([rooms],), "this is a list of them: write Tester(*services)"),
        (((rooms, kitchen),), "this is a tuple of them: write Tester(*services)"),
        ((App("hotel", events="nowhere", services="nowhere"),), "this is an app: write Tester(*app.services)"),
        (("rooms",), "'rooms' is a text: give the service itself, which was made by Service('rooms')"),
        ((rooms, 7), "7 is none: write Tester(inventory)"),
        ((Service,), "<class 'bus.service.Service'> is none: write Tester(inventory)"),
        ((rooms, kitchen, rooms), "the service 'rooms' is given twice; give it once"),
    ],
)
def test_what_is_no_service_is_told_with_what_to_give(given: tuple[Any, ...], told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Tester(*given)
    (line,) = raised.value.problems
    assert line.startswith("Tester(")
    assert told in line


CALLS: dict[str, Callable[[Tester], Any]] = {
    "publish(…)": lambda bus: bus.publish(Booked()),
    "request(…)": lambda bus: bus.request(Booked(), Freed, timeout=1),
    "settled()": lambda bus: bus.settled(),
    "advance(…)": lambda bus: bus.advance(1),
    "crash()": lambda bus: bus.crash(),
    "pause(…)": lambda bus: bus.pause("rooms"),
    "resume(…)": lambda bus: bus.resume("rooms"),
}
LOOKS: dict[str, Callable[[Tester], Any]] = {
    "published(…)": lambda bus: bus.published(Freed),
    "handled(…)": lambda bus: bus.handled(follow),
    "dead_letters()": lambda bus: bus.dead_letters(),
}


async def refused(bus: Tester, call: Callable[[Tester], Any]) -> str:
    with pytest.raises(ConfigurationError) as raised:
        if (awaited := call(bus)) is not None:
            await awaited
    return str(raised.value)


@pytest.mark.parametrize("name", [*CALLS, *LOOKS])
async def test_before_its_async_with_a_tester_refuses_whatever_it_is_asked(name: str) -> None:
    told = await refused(Tester(rooms), (CALLS | LOOKS)[name])
    assert told.startswith(f"bus.{name} comes before the Tester's `async with`, where no service runs")


@pytest.mark.parametrize("name", CALLS)
async def test_after_its_async_with_nothing_can_happen_and_is_not_taken_for_done(name: str) -> None:
    async with Tester(rooms) as bus:
        pass
    assert (await refused(bus, CALLS[name])).startswith(f"bus.{name} comes after the Tester's `async with`")


async def test_what_happened_can_be_looked_at_afterwards() -> None:
    async with Tester(rooms) as bus:
        await bus.publish(Booked())
        await bus.settled()
    assert (bus.published(Freed), len(bus.handled(follow)), bus.dead_letters()) == ([Freed()], 1, [])


async def test_what_publishes_is_tested_alone_with_a_service_that_handles_nothing() -> None:
    async with Tester(Service("nobody")) as bus:
        await bus.publish(Booked())
        await bus.settled()
        assert bus.published(Booked) == [Booked()]


async def test_a_tester_that_did_not_start_is_closed() -> None:
    service = Service("broken")

    @service.resource
    async def till() -> AsyncIterator[int]:
        raise OSError("no till")
        yield 1

    bus = Tester(service)
    with pytest.raises(OSError, match="no till"):
        await bus.__aenter__()
    assert "comes after" in await refused(bus, CALLS["publish(…)"])


async def test_a_tester_is_entered_once() -> None:
    async with Tester(rooms) as bus:
        with pytest.raises(ConfigurationError, match="a Tester is entered once"):
            await bus.__aenter__()
    with pytest.raises(ConfigurationError, match="a Tester is entered once"):
        await bus.__aenter__()


async def test_only_what_is_hosted_can_have_handled_something() -> None:
    async with Tester(rooms) as bus:
        for given, told in (("follow", "'follow' is none"), (cook, f"{__name__}.cook ("), (Booked, ".Booked is none")):
            with pytest.raises(ConfigurationError, match=r"The handlers here are rooms\.follow$") as raised:
                bus.handled(given)  # type: ignore[arg-type]
            assert told in str(raised.value)


async def test_a_method_is_a_handler_like_any_other() -> None:
    service, desk = Service("desk"), Desk()
    service.on("room.*")(desk.note)
    async with Tester(service) as bus:
        await bus.publish(Booked())
        await bus.settled()
        assert len(bus.handled(desk.note)) == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("room.booked", "not 'room.booked': write published(Booked)"),
        ("room.left", "not 'room.left': write published(OrderPlaced)"),
        (Booked(), "not Booked(number=1): write published(OrderPlaced)"),
        (int, "not <class 'int'>: write published(OrderPlaced)"),
        (follow, "not <function follow"),
    ],
)
async def test_what_was_published_is_asked_for_by_class(given: Any, told: str) -> None:
    async with Tester(rooms) as bus:
        with pytest.raises(ConfigurationError) as raised:
            bus.published(given)
    assert told in str(raised.value)
