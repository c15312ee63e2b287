"""Ordered handlers in a worker, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from bus import (
    Context,
    Event,
    Message,
    Reject,
    RetryAfter,
    Service,
    fixed,
)
from bus.message import Outgoing
from bus.testing import Tester
from bus.transport.memory import MemoryConsumer


class Moved(Event, type="parcel.moved"):
    parcel: str = "a"
    number: int = 0


class Counted(Event, type="parcel.counted"):
    number: int


class Weighed(Event, type="parcel.weighed"):
    weight: Decimal
    number: int


def moves(*keys: str) -> list[Moved]:
    return [Moved(parcel=key, number=number) for number, key in enumerate(keys)]


def numbers(messages: list[Message]) -> list[int]:
    return [int(message.body.split(b'"number":')[1].strip(b" }")) for message in messages]


async def test_equal_keys_that_are_spelled_otherwise_run_one_at_a_time() -> None:
    seen: list[tuple[str, int]] = []
    service = Service("yard")

    @service.on(Weighed, ordered_by="weight")
    async def work(weighed: Weighed) -> None:
        seen.append(("begins", weighed.number))
        await asyncio.sleep(1)
        seen.append(("ends", weighed.number))

    async with Tester(service) as bus:
        await bus.publish(*(Weighed(weight=Decimal(spelled), number=n) for n, spelled in enumerate(("1.5", "1.50"))))
        await bus.settled()
    assert seen == [("begins", 0), ("ends", 0), ("begins", 1), ("ends", 1)]


async def test_a_retry_waits_in_place_for_as_long_as_its_policy_says() -> None:
    seen: list[tuple[int, int, float, Any]] = []
    service, loop = Service("yard"), asyncio.get_running_loop()

    @service.on(Moved, ordered_by="parcel", retry=fixed(3, 60))
    async def work(moved: Moved, context: Context) -> None:
        seen.append((moved.number, context.attempt, loop.time(), context.first_failed_at))
        if moved.number == 0 and context.attempt < 3:
            raise ConnectionError("down")

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a"))
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1]
    assert [(number, attempt) for number, attempt, _, _ in seen] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    times = [at for _, _, at, _ in seen]
    assert [round(later - times[0]) for later in times] == [0, 60, 120, 120]
    assert seen[0][3] is None
    assert seen[1][3] == seen[2][3] is not None


async def test_a_retry_in_place_is_logged_as_any(caplog: pytest.LogCaptureFixture) -> None:
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(2, 60))
    async def work(moved: Moved, context: Context) -> None:
        if context.attempt == 1:
            raise ConnectionError("down")

    async with Tester(service) as bus:
        await bus.publish(Moved())
        await bus.settled()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("event=retry", "handler=work", "attempt=1", "delay=60.0", "error=down"):
        assert part in told


async def test_what_is_exhausted_or_rejected_lets_its_key_go_on() -> None:
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(2, 5))
    async def work(moved: Moved) -> None:
        if moved.number == 0:
            raise ConnectionError
        if moved.number == 1:
            raise Reject("no")

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a", "a"))
        await bus.settled()
        assert numbers(bus.handled(work)) == [2]
        assert [(x.failure.reason, x.failure.attempts) for x in bus.dead_letters()] == [
            ("exhausted", 2),
            ("rejected", 1),
        ]


async def test_retry_after_waits_in_place_too() -> None:
    times: list[float] = []
    service, loop = Service("yard"), asyncio.get_running_loop()

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved, context: Context) -> None:
        times.append(loop.time())
        if len(times) == 1:
            raise RetryAfter(3600)

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a"))
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1]
    assert times[1] - times[0] == pytest.approx(3600, abs=1)


async def test_a_lane_that_waits_holds_no_slot_and_other_keys_go_on() -> None:
    service = Service("yard", concurrency=1)

    @service.on(Moved, ordered_by="parcel", retry=fixed(2, 600))
    async def work(moved: Moved, context: Context) -> None:
        if moved.parcel == "a" and context.attempt == 1:
            raise ConnectionError

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "b", "c"))
        await bus.advance(1)
        assert numbers(bus.handled(work)) == [1, 2]
        await bus.settled()
        assert numbers(bus.handled(work)) == [1, 2, 0]


async def test_no_more_lanes_run_at_once_than_the_handler_may() -> None:
    running = most = 0
    service = Service("yard", concurrency=8)

    @service.on(Moved, ordered_by="parcel", concurrency=3)
    async def work(moved: Moved) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1)
        running -= 1

    async with Tester(service) as bus:
        await bus.publish(*moves(*"abcdefghij"))
        await bus.settled()
    assert most == 3


async def test_what_a_message_published_is_stored_before_the_next_of_its_key_begins() -> None:
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> Counted:
        await asyncio.sleep(0.1 / (moved.number + 1))
        return Counted(number=moved.number)

    async with Tester(service) as bus:
        await bus.publish(*moves(*"aaaaaa"))
        await bus.settled()
        assert [counted.number for counted in bus.published(Counted)] == list(range(6))


async def test_what_waits_for_a_deploy_holds_its_key_and_costs_no_attempt() -> None:
    service = Service("yard")
    first: list[tuple[str, int, int]] = []

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved, context: Context) -> None:
        first.append((moved.parcel, moved.number, context.attempt))

    async with Tester(service) as bus:
        await bus.transport.publish([newer(b'{"parcel": "a", "number": 0, "soon": true}')])
        await bus.transport.publish([newer(b'{"nothing": "known"}'), newer(b"garbage")])
        await bus.publish(*moves("a", "b"))
        await bus.advance(60)
        assert first == [("b", 1, 1)]
        await bus.settled()
        letters = bus.dead_letters()
    assert first == [("b", 1, 1), ("a", 0, 1)]
    assert {letter.failure.reason for letter in letters} == {"unknown-version"}
    assert {letter.failure.attempts for letter in letters} == {0}


def newer(body: bytes) -> Outgoing:
    return Outgoing(
        Message(id=body.decode(), type="parcel.moved", version=9, source="", time=datetime.now(UTC), body=body)
    )


async def test_garbage_is_dead_lettered_at_once_and_holds_back_nobody() -> None:
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(2, 600))
    async def work(moved: Moved, context: Context) -> None:
        if context.attempt == 1:
            raise ConnectionError

    async with Tester(service) as bus:
        await bus.publish(*moves("a"))
        await bus.transport.publish([Outgoing(replace(newer(b"garbage").message, version=1))])
        await bus.advance(1)
        assert [letter.failure.reason for letter in bus.dead_letters()] == ["undecodable"]
        await bus.settled()


async def test_a_full_window_pauses_and_says_so_until_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tidegate")
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", ordered_window=3, retry=fixed(3, 100))
    async def work(moved: Moved, context: Context) -> None:
        if moved.number == 1 and context.attempt < 3:
            raise ConnectionError

    def told() -> list[str]:
        return [text for record in caplog.records if "yard.work" in (text := record.getMessage())]

    async with Tester(service) as bus:
        await bus.publish(*moves("b", "a", "a", "a", "a", "c"))
        await bus.advance(150)
        assert numbers(bus.handled(work)) == [0]
        (pauses,) = told()
        assert "handler pauses" in pauses
        assert "oldest_key=a" in pauses
        await bus.settled()
        assert [number for number in numbers(bus.handled(work)) if number != 5] == [0, 1, 2, 3, 4]
        assert "handler goes on" in told()[1]
        assert len(told()) == 2


async def test_a_crash_starts_attempt_and_delay_again_and_keeps_the_order() -> None:
    seen: list[tuple[int, int]] = []
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(3, 600))
    async def work(moved: Moved, context: Context) -> None:
        seen.append((moved.number, context.attempt))
        if len(seen) < 3:
            raise ConnectionError

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a"))
        await bus.advance(700)
        await bus.crash()
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1]
    assert seen == [(0, 1), (0, 2), (0, 1), (1, 1)]


async def test_everything_goes_back_before_the_broker_takes_it_and_the_wait_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewed: list[float] = []
    seen: list[tuple[int, int, float]] = []
    service, loop = Service("yard"), asyncio.get_running_loop()
    limit = MemoryConsumer.limit

    async def watched(self: MemoryConsumer, unsettled: int) -> None:
        renewed.append(loop.time())
        await limit(self, unsettled)

    monkeypatch.setattr(MemoryConsumer, "limit", watched)

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved, context: Context) -> None:
        seen.append((moved.number, context.attempt, loop.time()))
        if moved.number == 0 and context.attempt == 1:
            raise RetryAfter(3000)

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a"))
        began = loop.time()
        await bus.settled()
        assert numbers(bus.handled(work)) == [0, 1]
    assert [(number, attempt) for number, attempt, _ in seen] == [(0, 1), (0, 2), (1, 1)]
    assert seen[1][2] - seen[0][2] == pytest.approx(3000, abs=1)
    assert [round(at - began, -1) for at in renewed] == [1200, 2400]


async def test_a_long_run_ends_before_everything_goes_back() -> None:
    runs = 0
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", timeout=1500)
    async def work(moved: Moved, context: Context) -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(1400)

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a", "b"))
        await bus.settled()
        assert sorted(numbers(bus.handled(work))) == [0, 1, 2]
    assert runs == 3


async def test_a_run_that_outlasts_it_all_goes_on_and_its_message_is_not_run_beside_it() -> None:
    seen: list[tuple[int, int]] = []
    running = 0
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", timeout=1500)
    async def work(moved: Moved, context: Context) -> None:
        nonlocal running
        running += 1
        assert running == 1
        seen.append((moved.number, context.attempt))
        for _ in range(2 if context.attempt == 1 and moved.number == 0 else 0):
            try:
                await asyncio.sleep(1490)
            except asyncio.CancelledError:  # as a thread, which cannot be cancelled
                await asyncio.sleep(1490)
        running -= 1

    async with Tester(service) as bus:
        await bus.publish(*moves("a", "a"))
        await bus.settled()
        assert bus.dead_letters() == []
    assert seen == [(0, 1), (0, 2), (1, 1)]


async def test_a_day_of_failures_keeps_the_order_of_every_key() -> None:
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(5, 280))
    async def work(moved: Moved, context: Context) -> None:
        if context.attempt < 5:
            raise ConnectionError

    async with Tester(service) as bus:
        await bus.publish(*moves(*"ab" * 40))
        await bus.settled(within=20)
        done = numbers(bus.handled(work))
    assert [n for n in done if n % 2 == 0] == list(range(0, 80, 2))
    assert [n for n in done if n % 2 == 1] == list(range(1, 80, 2))
