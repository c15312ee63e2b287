"""What handlers and scenarios meet in a simulation is what they would meet at a broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from bus import Bus, BusUnavailable, Event, Reject, Service, SqliteStore, Store, fixed
from bus.testing import SimulationFailed, Tester, simulate
from bus.testing.faults import Fault, Kind, chosen
from bus.testing.simulated import Scenario
from bus.testing.simulation import _run


class Asked(Event, type="price.asked"):
    number: int


class Told(Event, type="price.told"):
    number: int


class Moved(Event, type="stock.moved"):
    shelf: str = "a"
    number: int


class Seen(list[int]):
    pass


def prices() -> Tester:
    service = Service("prices")

    @service.on(Asked)
    async def tell(asked: Asked, seen: Seen) -> Told:
        await asyncio.sleep(1)
        seen.append(asked.number)
        return Told(number=asked.number)

    return Tester(service, resources={Seen: Seen()})


def publishing() -> Tester:
    """Return a service whose handler publishes by itself, and does not wait for its ack."""
    service = Service("prices")

    @service.resource
    async def bus() -> AsyncIterator[Bus]:
        yield None  # type: ignore[misc]

    @service.on(Asked, retry=fixed(3, 1))
    async def tell(asked: Asked, bus: Bus, seen: Seen) -> None:
        seen.append(asked.number)
        await bus.publish(Told(number=asked.number))

    return Tester(service, resources={Seen: Seen()})


async def one(bus: Tester) -> None:
    await bus.publish(Asked(number=1))
    await bus.settled()


async def answered(bus: Tester) -> None:
    await one(bus)
    assert {event.number for event in bus.published(Told)} == {1}


async def fails(bus: Tester) -> None:
    await one(bus)
    pytest.fail("the price is wrong")


async def raises_nothing(bus: Tester) -> None:
    await one(bus)
    with pytest.raises(ValueError):
        pass


async def fails_beside_others(bus: Tester) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fails(bus))


@pytest.mark.parametrize(
    ("scenario", "told"),
    [
        (fails, "seed=7: Failed: the price is wrong\n  tests"),
        (raises_nothing, "seed=7: Failed: DID NOT RAISE"),
        (fails_beside_others, "seed=7: Failed: the price is wrong\n  tests"),
    ],
)
def test_what_pytest_fails_by_is_told_with_its_seed(scenario: Scenario, told: str) -> None:
    with pytest.raises(SimulationFailed) as failed:
        simulate(prices, scenario, seeds=[7])
    assert told in str(failed.value)
    assert "\nit fails without any fault\n" in str(failed.value)


def test_a_scenario_that_skips_is_skipped() -> None:
    async def skips(bus: Tester) -> None:
        pytest.skip("not here")

    with pytest.raises(pytest.skip.Exception, match="not here"):
        simulate(prices, skips, seeds=[7])


def test_a_worker_that_does_not_come_again_is_told_with_its_seed() -> None:
    def build() -> Tester:
        service, opened = Service("prices"), []

        @service.resource
        async def seen() -> AsyncIterator[Seen]:
            opened.append(1)
            if len(opened) > 1:
                raise ConnectionError("the port is taken")
            yield Seen()

        @service.on(Asked)
        async def tell(asked: Asked, seen: Seen) -> None: ...

        return Tester(service)

    with pytest.raises(
        SimulationFailed, match=r"(?s)ConnectionError: the port is taken.*faults that it takes: (crash|stop) at"
    ):
        simulate(build, one, seeds=range(50))


def test_a_crash_comes_between_any_two_of_receiving_and_running_and_settling_though_the_handler_awaits_nothing() -> (
    None
):
    service = Service("prices")
    runs: list[int] = []

    @service.on(Asked)
    async def tell(asked: Asked, seen: Seen) -> None:
        seen.append(asked.number)

    def build() -> Tester:
        return Tester(service, resources={Seen: Seen()})

    async def once(bus: Tester) -> None:
        await one(bus)
        runs.append(len(bus.resources[Seen]))

    met = set()
    for at in range(1, _run(build, once, 0, ()).counts["step"] + 1):
        told = str(_run(build, once, 0, [Fault("crash", at, 1)]).story.lines())
        if "the worker crashes" in told:
            met.add(("with prices.tell unsettled" in told, runs[-1]))
    assert met == {(False, 1), (True, 1), (True, 2)}, "nothing taken; taken and not run; run and not settled"


def test_no_reply_comes_over_a_lost_connection_and_the_request_says_so() -> None:
    async def request(bus: Tester) -> None:
        try:
            await bus.request(Asked(number=1), Told, timeout=60)
        finally:
            await bus.settled()
            assert 1 in bus.resources[Seen]

    steps = _run(prices, request, 0, ()).counts["step"]
    errors = [_run(prices, request, 0, [Fault("connection lost", at)]).error for at in range(1, steps + 1)]
    told = [error for error in errors if error is not None]
    assert told
    assert all(isinstance(error, BusUnavailable) and "no reply can come any more" in str(error) for error in told)


def test_a_request_waits_for_a_broker_that_is_down_no_longer_than_its_timeout() -> None:
    async def request(bus: Tester) -> None:
        began = asyncio.get_running_loop().time()
        await one(bus)
        try:
            await bus.request(Asked(number=1), Told, timeout=9)
        finally:
            took.append(asyncio.get_running_loop().time() - began)

    took: list[float] = []
    steps = _run(prices, request, 0, ()).counts["step"]
    errors = [_run(prices, request, 0, [Fault("outage", at, 30)]).error for at in range(1, steps + 1)]
    assert any("not sent within 9 s: the broker is down" in str(error) for error in errors)
    assert all(error is None or isinstance(error, BusUnavailable) for error in errors)
    errors = [_run(prices, request, 0, [Fault("outage", at, 5)]).error for at in range(1, steps + 1)]
    assert not any("not sent" in str(error) for error in errors), "an outage within the timeout is waited for"


def test_a_crash_comes_between_a_completion_and_its_ack() -> None:
    service = Service("prices")

    @service.on(Asked, idempotent=True)
    async def tell(asked: Asked, seen: Seen) -> None:
        seen.append(asked.number)

    def build() -> Tester:
        return Tester(service, resources={Seen: Seen(), Store: SqliteStore(":memory:")})

    steps = _run(build, one, 0, ()).counts["step"]
    stories = [_run(build, one, 0, [Fault("crash", at, 1)]).story for at in range(1, steps + 1)]
    assert any("completed before, not run" in line for story in stories for line in story)


def test_a_crash_and_a_stop_come_while_a_worker_starts_again() -> None:
    opened: list[str] = []

    def build() -> Tester:
        service = Service("prices")

        @service.resource
        async def seen() -> AsyncIterator[Seen]:
            opened.append("begins")
            for _ in range(15):
                await asyncio.sleep(0)
            opened.append("is open")
            yield Seen()

        @service.on(Asked)
        async def tell(asked: Asked, seen: Seen) -> Told:
            return Told(number=asked.number)

        return Tester(service)

    for kind in ("crash", "stop"):
        cut_off = 0
        for at in range(2, 20):
            opened.clear()
            ran = _run(build, answered, at, [Fault("crash", 1, 1), Fault(kind, at, 1)])
            assert ran.error is None
            cut_off += opened.count("begins") > opened.count("is open")
        assert cut_off > 1, kind


def test_a_scenario_may_crash_a_worker_that_stops() -> None:
    async def crashes(bus: Tester) -> None:
        await bus.publish(Asked(number=1))
        await bus.advance(0.5)
        await bus.crash()
        await bus.settled()
        assert {event.number for event in bus.published(Told)} == {1}

    steps = _run(prices, crashes, 0, ()).counts["step"]
    for kind in ("stop", "crash"):
        for at in range(1, steps + 1):
            assert _run(prices, crashes, 0, [Fault(kind, at, 1)]).error is None


def test_of_two_operators_who_replay_a_letter_at_once_one_gets_it() -> None:
    def build() -> Tester:
        service = Service("prices")

        @service.on(Asked)
        async def tell(asked: Asked) -> None:
            raise Reject("no")

        return Tester(service)

    async def twice(bus: Tester) -> None:
        await one(bus)
        [letter] = bus.dead_letters()
        replays = (bus.transport.dead_letters.replay(letter) for _ in range(2))
        first, second = await asyncio.gather(*replays, return_exceptions=True)
        assert first is None
        assert isinstance(second, LookupError)
        assert "not open any more" in str(second)
        await bus.settled()
        assert len(bus.dead_letters()) == 1

    assert _run(build, twice, 0, ()).error is None


@pytest.mark.parametrize(("kind", "copies"), [("refused", 1), ("unsure", 2)])
def test_a_publish_of_a_handler_raises_and_one_of_the_scenario_is_tried_again(kind: Kind, copies: int) -> None:
    async def look(bus: Tester) -> None:
        await one(bus)
        assert (len(bus.resources[Seen]), len(bus.published(Told))) == (2, copies)

    ran = _run(publishing, look, 0, [Fault(kind, 2)])
    assert ran.error is None
    assert any("raised BusUnavailable" in line for line in ran.story)

    async def look_at_ours(bus: Tester) -> None:
        await one(bus)
        assert len(bus.published(Asked)) == copies

    assert _run(publishing, look_at_ours, 0, [Fault(kind, 1)]).error is None


def test_a_publish_of_a_handler_waits_through_an_outage_no_longer_than_it_may() -> None:
    steps = _run(publishing, one, 0, ()).counts["step"]
    raised = [_run(publishing, one, 0, [Fault("outage", at, 30)]).story for at in range(1, steps + 1)]
    assert any("not sent within 10 s: the broker is down" in line for story in raised for line in story)


def test_what_is_late_in_an_ordered_queue_makes_what_follows_late() -> None:
    def build() -> Tester:
        service = Service("prices")

        @service.on(Asked, ordered_by="number")
        async def tell(asked: Asked, seen: Seen) -> None:
            seen.append(asked.number)

        return Tester(service, resources={Seen: Seen()})

    async def in_order(bus: Tester) -> None:
        for number in range(3):
            await bus.publish(Asked(number=number))
        await bus.advance(4)
        assert bus.resources[Seen] == []
        await bus.settled()
        assert sorted(bus.resources[Seen]) == [0, 1, 2]

    assert _run(build, in_order, 0, [Fault("late", 1, 5)]).error is None


def test_the_wall_clock_jumps_ahead_and_back() -> None:
    jumps = [fault for seed in range(300) for fault in chosen(Random(seed), {}) if fault.kind == "clock jump"]
    assert {fault.seconds > 0 for fault in jumps} == {True, False}


def ordered() -> Tester:
    service = Service("prices")

    @service.on(Moved, ordered_by="shelf")
    async def follow(moved: Moved, seen: Seen) -> None:
        seen.append(moved.number)

    return Tester(service, resources={Seen: Seen()})


@pytest.mark.parametrize("at", range(1, 6))
def test_a_duplicate_in_an_ordered_queue_comes_behind_nothing_later(at: int) -> None:
    async def in_order(bus: Tester) -> None:
        for number in range(1, 6):
            await bus.publish(Moved(number=number))
        await bus.settled()
        assert bus.resources[Seen] == sorted([*range(1, 6), at])

    ran = _run(ordered, in_order, 0, [Fault("duplicate", at, 5)])
    assert ran.error is None
    assert "twice: stock.moved for prices.follow" in ran.story


def test_a_resource_that_fails_as_a_worker_comes_again_is_tried_again() -> None:
    def build() -> Tester:
        service, opened = Service("prices"), []

        @service.resource
        async def seen() -> AsyncIterator[Seen]:
            opened.append(1)
            if len(opened) in (2, 3):
                raise ConnectionError("the database starts")
            yield Seen()

        @service.on(Asked)
        async def tell(asked: Asked, seen: Seen) -> Told:
            return Told(number=asked.number)

        return Tester(service)

    steps = _run(build, answered, 0, ()).counts["step"]
    stories = []
    for kind in ("crash", "stop"):
        for at in range(1, steps + 1):
            ran = _run(build, answered, 0, [Fault(kind, at, 1)])
            assert ran.error is None
            stories.append(ran.story)
    waited = "prices waits for a resource or its store: ConnectionError: the database starts"
    assert sum(waited in story for story in stories) > 4


class Pool:
    pass


def pooled(*, refused: int = 0) -> Tester:
    """Return a service whose pool opens and closes in a thread, and cannot be opened the second time."""
    service, opened = Service("prices"), []

    @service.resource
    async def pool() -> AsyncIterator[Pool]:
        opened.append(1)
        await asyncio.to_thread(time.sleep, 0.001 if len(opened) < refused else 0.02)
        if len(opened) == refused:
            raise ConnectionError("the database starts")
        yield Pool()
        await asyncio.to_thread(time.sleep, 0.001)

    @service.on(Asked)
    async def tell(asked: Asked, pool: Pool) -> Told:
        return Told(number=asked.number)

    return Tester(service)


def stored(file: Path) -> Tester:
    service = Service("prices")

    @service.on(Asked, idempotent=True)
    async def tell(asked: Asked) -> Told:
        return Told(number=asked.number)

    return Tester(service, resources={Store: SqliteStore(file)})


@pytest.mark.parametrize("kind", ["crash", "stop"])
@pytest.mark.parametrize("what", ["a pool", "a pool that cannot be opened again at once", "a store in a file"])
def test_time_stands_for_as_long_as_a_thread_closes_or_opens_what_a_worker_has(
    what: str, kind: Kind, tmp_path: Path
) -> None:
    def build() -> Tester:
        if what == "a store in a file":
            return stored(tmp_path / f"{time.monotonic_ns()}.db")
        return pooled(refused=0 if what == "a pool" else 2)

    steps = _run(build, answered, 0, ()).counts["step"]
    for at in range(1, steps + 1):
        assert _run(build, answered, 0, [Fault(kind, at, 1)]).error is None, at
