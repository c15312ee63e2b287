"""C4: events that cause each other without end are stopped, with one dead letter for each chain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus import Context, Letter, Reject, RetryAfter, Service, immediate

from .stage import Log, Placed, Shipped, Stage


Hops = Log[tuple[int, int]]
"""The chain, and how many handlers stood before this one."""


def there(seen: Hops) -> Service:
    """Return the service that answers orders with shipments, by what it returns."""
    service = Service("there", concurrency=4)

    @service.on(Placed, retry=immediate(2))
    async def ship(placed: Placed, context: Context) -> Shipped:
        seen.append((placed.number, context.message.hops))
        return Shipped(number=placed.number)

    return service


def back(seen: Hops, error: Exception | None = None, delay: float = 0) -> Service:
    """Return the service that answers shipments with orders, by its context; its first attempts may fail."""
    service = Service("back", concurrency=4)

    @service.on(Shipped, retry=immediate(2))
    async def place(shipped: Shipped, context: Context) -> None:
        seen.append((shipped.number, context.message.hops))
        if error is not None and context.attempt == 1 and context.message.hops == 3:
            raise error
        context.publish(Placed(number=shipped.number), delay=delay)

    return service


async def ended(stage: Stage, chains: int, hops: int) -> list[Letter]:
    """Wait for the end of every chain, and see that there is no other."""
    letters = await stage.letters("back", chains)
    assert sorted(letter.failure.reason for letter in letters) == ["hops"] * chains
    assert {letter.message.hops for letter in letters} == {hops}
    assert [letter async for letter in stage.transport.dead_letters.browse("there")] == []
    return letters


@pytest.mark.parametrize(
    ("error", "delay"),
    [(None, 0), (None, 0.1), (ValueError("once"), 0), (RetryAfter(0.15), 0.1)],
    ids=["at once", "with delays", "with retries", "with both"],
)
async def test_c4_a_storm_over_two_services_ends_with_one_dead_letter_for_each_chain(
    stage: Stage, error: Exception | None, delay: float
) -> None:
    seen: Hops = Log()
    services = there(seen), back(seen, error, delay)
    async with stage.hosting(*services, max_hops=6), stage.hosting(*services, max_hops=6):
        await stage.bus.publish(*(Placed(number=number) for number in range(5)))
        letters = await ended(stage, 5, hops=7)
        await asyncio.sleep(0.3)
        assert await ended(stage, 5, hops=7) == letters
    runs = 7 if error is None else 8
    assert sorted(number for number, _ in seen) == sorted([*range(5)] * runs)
    assert {hops for _, hops in seen} == set(range(7))


async def test_c4_a_replay_counts_on(stage: Stage) -> None:
    seen: Hops = Log()
    rejecting = there(seen), back(seen, Reject("not now"))
    async with stage.hosting(*rejecting, max_hops=6):
        await stage.bus.publish(Placed(number=1))
        (letter,) = await stage.letters("back")
        assert (letter.failure.reason, letter.message.hops) == ("rejected", 3)
    willing = there(seen), back(seen)
    async with stage.hosting(*willing, max_hops=6):
        await stage.transport.dead_letters.replay(letter)
        await seen.holds(lambda hops: (1, 6) in hops, "the last hop")
        (last,) = await ended(stage, 1, hops=7)
        # a circle that is still closed ends where it ended before
        await stage.transport.dead_letters.replay(last)
        async with asyncio.timeout(20):
            while (again := await stage.letters("back"))[0].id == last.id:
                await asyncio.sleep(0.05)
        assert [(a.failure.reason, a.message.hops, a.failed_again) for a in again] == [("hops", 7, 1)]
    async with stage.hosting(*willing, max_hops=8):
        await stage.transport.dead_letters.replay(again[0])
        await ended(stage, 1, hops=9)
    assert [hops for _, hops in seen] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("forged", "first"),
    [(5, 5), (-5, 0), ("5", 0), (True, 0), (1 << 40, 0), ({"deep": 5}, 0), (7, None), ((1 << 31) - 1, None)],
    ids=str,
)
async def test_c4_forged_hops_shorten_a_storm_and_never_lengthen_it(
    rabbitmq: Stage, forged: Any, first: int | None
) -> None:
    seen: Hops = Log()
    async with rabbitmq.hosting(there(seen), back(seen), max_hops=6):
        await rabbitmq.raw("order.placed", b'{"number": 1}', {"tidegate-hops": forged})
        if first is None:
            (letter,) = await rabbitmq.letters("there")
            assert (letter.failure.reason, letter.message.hops) == ("hops", forged)
        else:
            (letter,) = await rabbitmq.letters("there" if first % 2 else "back")
            assert (letter.failure.reason, letter.message.hops) == ("hops", 7)
    assert [hops for _, hops in seen] == ([] if first is None else list(range(first, 7)))


async def test_c4_the_dead_letter_says_what_to_do(stage: Stage) -> None:
    service = Service("storm")

    @service.on(Placed)
    async def again(placed: Placed) -> Placed:
        return placed

    async with stage.hosting(service, max_hops=2):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("storm")
    assert "BUS_MAX_HOPS" in letter.failure.error
    assert "a replay counts on" in letter.failure.error
