"""A simulation ends, whatever a scenario or a handler does, and refuses what would prove nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock, MagicMock
from uuid import uuid4

import pytest

from bus import ConfigurationError, Event, Service, SqliteStore, Store, fixed
from bus.testing import NotSettled, SimulationFailed, Tester, patience, simulate, simulation
from bus.testing.faults import Fault
from bus.testing.simulation import _run


class Asked(Event, type="price.asked"):
    number: int


class Told(Event, type="price.told"):
    number: int


class Seen(list[int]):
    pass


def prices(seen: Seen | None = None) -> Tester:
    service = Service("prices")

    @service.on(Asked, retry=fixed(5, 1))
    async def tell(asked: Asked, seen: Seen) -> None:
        seen.append(asked.number)

    return Tester(service, resources={Seen: Seen() if seen is None else seen})


def failing() -> Tester:
    service = Service("prices")

    @service.on(Asked, retry=fixed(5, 1))
    async def tell(asked: Asked) -> None:
        raise ValueError("always")

    return Tester(service)


async def one(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    await bus.settled()


async def only_once(bus: Tester) -> None:
    await one(bus)
    assert bus.resources[Seen] == [1]


def told_of(build: Callable[[], Tester], scenario: Any, **called: Any) -> str:
    with pytest.raises(SimulationFailed) as failed:
        simulate(build, scenario, **called)
    return str(failed.value)


async def polls(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    while not bus.published(Told):
        await asyncio.sleep(1)


async def polls_with_turns(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    while not bus.published(Told):
        await asyncio.sleep(0)


async def polls_settled(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    while not bus.published(Told):
        await bus.settled()


async def waits(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    await asyncio.Event().wait()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        (polls, "50,000 turns of the event loop went by; wait with bus.settled()"),
        (polls_with_turns, "50,000 turns"),
        (polls_settled, "50,000 turns"),
        (waits, "nothing is left that could happen\n"),
    ],
)
def test_a_scenario_that_waits_for_what_does_not_come_is_cut_off(scenario: Any, why: str) -> None:
    told = told_of(prices, scenario)
    assert f"seed=0: NotSettled: the scenario waits for what does not come: {why}" in told
    assert "\n  nothing is left on the bus\n" in told
    assert f"in {scenario.__name__}: await " in told
    assert "\nit fails without any fault\n" in told


def test_a_scenario_may_wait_by_itself_for_what_comes() -> None:
    async def patient(bus: Tester) -> None:
        await bus.publish(Asked(number=1))
        while not bus.resources[Seen]:
            await asyncio.sleep(1)

    simulate(prices, patient, seeds=range(30))


def stubborn() -> Tester:
    service = Service("prices")

    @service.on(Asked, timeout=5)
    async def tell(asked: Asked) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    return Tester(service)


def test_a_scenario_may_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MOST_TURNS", 200)

    async def waits_for_a_thread(bus: Tester) -> None:
        await one(bus)
        await asyncio.to_thread(time.sleep, 0.3)

    assert _run(prices, waits_for_a_thread, 0, ()).error is None


@pytest.mark.timeout(30)
def test_what_a_scenario_left_is_cancelled_and_takes_the_time_that_it_needs() -> None:
    ended: list[str] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(20)
            ended.append("lingers")

    async def swallows() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.append("swallows")

    async def leaves_one(bus: Tester) -> None:
        bus.left = asyncio.create_task(lingers())  # type: ignore[attr-defined]
        await one(bus)

    async def leaves_another(bus: Tester) -> None:
        await leaves_one(bus)
        bus.other = asyncio.create_task(swallows())  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    assert _run(prices, leaves_one, 0, ()).error is None
    assert ended == ["lingers"]
    told = told_of(prices, leaves_another, seed=7)
    assert told.startswith("seed=7: NotSettled: the scenario left what did not end within 30 s of being cancelled: ")
    assert "swallows; await it in the scenario" in told


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("seconds", "done"), [(20, ["closed"]), (3600, [])])
def test_a_generator_that_is_left_closes_in_the_time_that_it_needs_and_holds_up_nobody(
    seconds: float, done: list[str]
) -> None:
    ended: list[str] = []

    async def ticks() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(seconds)
            ended.append("closed")

    async def leaves_a_generator(bus: Tester) -> None:
        bus.left = ticks()  # type: ignore[attr-defined]
        await anext(bus.left)  # type: ignore[attr-defined]
        await one(bus)

    assert _run(prices, leaves_a_generator, 0, ()).error is None
    assert ended == done


def test_a_scenario_that_ends_in_a_cancellation_that_nobody_asked_for_has_failed_with_its_seed() -> None:
    async def cancels_its_own(bus: Tester) -> None:
        await one(bus)
        helper = asyncio.create_task(asyncio.sleep(9))
        helper.cancel()
        await helper

    told = told_of(prices, cancels_its_own, seed=7)
    assert told.startswith("seed=7: CancelledError\n  tests/")
    assert "in cancels_its_own: await helper" in told


async def test_a_handler_that_swallows_its_cancellation_is_named_as_the_bus_closes() -> None:
    with pytest.raises(NotSettled, match=r"(?s)swallows CancelledError.*prices\.tell \(.*test_simulation_bounds\.py:"):
        async with stubborn() as bus:
            await bus.publish(Asked(number=1))
            with pytest.raises(NotSettled, match="the real seconds that it may take are over"):
                await bus.settled(within=0.1)


def test_a_handler_that_swallows_its_cancellation_is_a_failure_with_its_seed() -> None:
    async def leave(bus: Tester) -> None:
        await bus.publish(Asked(number=1))
        await bus.advance(1)

    told = told_of(stubborn, leave, seed=7)
    assert told.startswith("seed=7: NotSettled: the worker did not end within 30 s")
    assert "running: prices.tell (" in told


def test_what_a_run_leaves_to_the_next_is_refused() -> None:
    tester, seen = prices(), Seen()
    with pytest.raises(ConfigurationError, match=r"same Tester twice.*make it in build"):
        simulate(lambda: tester, one)
    with pytest.raises(ConfigurationError, match=r"same Seen object for two runs.*resources=\{Seen: Seen\(\)\}"):
        simulate(lambda: prices(seen), one)


@dataclass(frozen=True)
class Box:
    seen: Seen


class Mailer:
    def send(self) -> None: ...


@pytest.mark.parametrize("kept", [AsyncMock(), MagicMock(), Mailer().send, (Mailer(),), Box(Seen())])
def test_what_is_no_plain_value_is_not_left_to_the_next_run_though_it_can_be_compared_and_hashed(kept: Any) -> None:
    service = Service("prices")

    @service.on(Asked)
    async def tell(asked: Asked, kept: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="object for two runs"):
        simulate(lambda: Tester(service, resources={Any: kept}), one, seeds=[1])


def test_a_store_that_a_run_leaves_to_the_next_is_refused_and_may_be_replaced() -> None:
    service = Service("prices", store=SqliteStore(":memory:"))

    @service.on(Asked, idempotent=True)
    async def tell(asked: Asked) -> None: ...

    with pytest.raises(ConfigurationError, match="the store of service 'prices' is the same for two runs"):
        simulate(lambda: Tester(service), one, seeds=[1])
    simulate(lambda: Tester(service, resources={Store: SqliteStore(":memory:")}), one, seeds=[1])


def test_a_constant_may_be_shared_by_runs() -> None:
    service = Service("prices")

    @service.on(Asked)
    async def tell(asked: Asked, currency: str) -> None: ...

    simulate(lambda: Tester(service, resources={str: "EUR"}), one, seeds=range(3))


def test_a_failure_that_does_not_repeat_says_so() -> None:
    runs: list[int] = []

    async def fails_at_the_third(bus: Tester) -> None:
        await one(bus)
        runs.append(1)
        assert len(runs) != 3

    told = told_of(prices, fails_at_the_third)
    assert "\nit does not repeat: run once more, it passed. Is there state in a module" in told
    assert "\nthe faults that it had: " in told


def test_what_fails_from_some_run_on_has_state_outside() -> None:
    runs: list[int] = []

    async def fails_from_the_third(bus: Tester) -> None:
        await one(bus)
        runs.append(1)
        assert len(runs) < 3

    told = told_of(prices, fails_from_the_third)
    assert "\nit fails without any fault by this time, though it passed at first. Is there state in a module" in told


def test_what_fails_again_but_otherwise_says_so() -> None:
    service = Service("prices")

    @service.on(Asked)
    async def tell(asked: Asked, seen: Seen) -> Told:
        seen.append(asked.number)
        return Told(number=uuid4().int)

    told = told_of(lambda: Tester(service, resources={Seen: Seen()}), only_once)
    assert "\nit does not repeat exactly: run once more, it failed, but otherwise." in told


def test_a_plain_function_that_ran_is_named_for_its_thread() -> None:
    service = Service("prices")

    @service.on(Asked)
    def tell(asked: Asked) -> None: ...

    async def fails(bus: Tester) -> None:
        await one(bus)
        raise ValueError("always")

    told = told_of(lambda: Tester(service), fails)
    assert "\na thread takes its turns by chance, so a repetition may differ: prices.tell\n" in told


async def many(bus: Tester) -> None:
    for number in range(100):
        await bus.publish(Asked(number=number))
    await bus.settled()
    assert len(bus.resources[Seen]) == 100


def test_of_a_long_story_the_faults_are_shown_and_what_happened_around_them() -> None:
    lines = _run(prices, many, 0, [Fault("duplicate", 20, 1)]).story.lines()
    assert len(lines) <= 70
    (marked,) = [n for n, line in enumerate(lines) if line.startswith("!")]
    assert "published price.asked" in lines[marked + 1]
    assert [line[0] for line in (lines[0], lines[marked + 4])] == ["…", "…"]


def test_the_error_that_pytest_shows_is_that_of_the_report() -> None:
    async def counts(bus: Any) -> None:
        await one(bus)
        faults = sum(line.startswith("!") for line in bus.trace.lines())
        assert bus.resources[Seen] == [1], f"with {faults} faults"

    with pytest.raises(SimulationFailed, match="AssertionError: with 1 faults") as failed:
        simulate(prices, counts)  # by its seed 0, four faults before any is left out
    assert str(failed.value.__cause__).startswith("with 1 faults")


def test_of_a_long_error_twenty_lines_are_told() -> None:
    async def fails(bus: Tester) -> None:
        await one(bus)
        raise ValueError("\n".join(f"line {number}" for number in range(40)))

    told = told_of(prices, fails)
    assert "seed=0: ValueError: line 0\n  line 1\n" in told
    assert "\n  line 20\n  … 19 lines\n" in told


def test_to_leave_faults_out_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "SHRINKING", 0.0)
    told = told_of(prices, only_once)
    assert "\nthere may be fewer faults: looking for them was cut short after 0 s\n" in told


async def test_inside_of_a_running_loop_it_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="plain `def test_…`, without async"):
        simulate(prices, one)


async def nothing(bus: Tester) -> None:
    await bus.settled()


async def unsettled(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    assert bus.dead_letters() == []


async def unsettled_in_the_end(bus: Tester) -> None:
    await bus.settled()
    await unsettled(bus)


async def settled_while_it_publishes(bus: Tester) -> None:
    await asyncio.gather(bus.settled(), one(bus))
    await bus.publish(Asked(number=2))
    await bus.advance(1)


async def unheard(bus: Tester) -> None:
    await bus.publish(Told(number=1))
    await bus.settled()


def no_coroutine(bus: Tester) -> None:
    assert bus.services


def test_a_scenario_that_waits_after_its_last_publish_need_not_settle() -> None:
    simulate(failing, settled_while_it_publishes, seeds=range(3))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: simulate(one, prices), "are the two swapped"),  # type: ignore[arg-type]
        (lambda: simulate(prices, prices), None),  # type: ignore[arg-type]
        (lambda: simulate(prices, no_coroutine), "must be an `async def` with one parameter"),  # type: ignore[arg-type]
        (lambda: simulate(prices, lambda: one), "must be an `async def` with one parameter"),  # type: ignore[arg-type,misc]
        (lambda: simulate(prices, one, seeds=10), "seeds=10: it must be several numbers, as range"),  # type: ignore[arg-type]
        (lambda: simulate(prices, one, seeds=[]), r"seeds=\[\] is empty"),
        (lambda: simulate(prices, one, seed="x"), "a seed must be a whole number, not 'x'"),  # type: ignore[arg-type]
        (lambda: simulate(prices, nothing), "published nothing"),
        (lambda: simulate(failing, unsettled), "handlers had work to do.*await bus.settled"),
        (lambda: simulate(failing, unsettled_in_the_end), "handlers had work to do.*after its last publish"),
        (lambda: simulate(prices, unheard), "nothing that was published has a handler"),
        (lambda: simulate(Tester, one), r"Tester\(\) hosts no service"),
    ],
)
def test_a_call_that_proves_nothing_is_refused_with_what_is_wanted(call: Callable[[], None], told: str | None) -> None:
    with pytest.raises(ConfigurationError, match=told):
        call()
