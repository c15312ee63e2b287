"""Ordered handlers under any mix of failures, holds and crashes: every key's first successes are in order."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from bus import Context, RetryAfter, Service, fixed
from bus.testing import Tester

from .test_ordered import Moved
from .test_ordered_flow import Flows


KEYS, EACH = "abcde", 30


@pytest.mark.parametrize("seed", range(4))
async def test_any_mix_of_failures_holds_and_crashes_keeps_the_order(seed: int) -> None:
    random, flows = Random(seed), Flows()
    first: dict[str, list[int]] = {key: [] for key in KEYS}
    running: dict[str, int] = dict.fromkeys(KEYS, 0)
    service = Service("yard", concurrency=3)

    @service.on(Moved, ordered_by="parcel", ordered_window=random.choice([3, 20, 1_000]), retry=fixed(100, 10))
    async def work(moved: Moved, context: Context) -> None:
        running[moved.parcel] += 1
        assert running[moved.parcel] == 1
        await asyncio.sleep(random.uniform(0, 5))
        running[moved.parcel] -= 1
        chance = random.random()
        if chance < (0.6 if moved.parcel == "a" else 0.1):
            raise RetryAfter(1_500) if chance < 0.01 else ConnectionError
        if moved.number not in first[moved.parcel]:
            first[moved.parcel].append(moved.number)

    async with Tester(service, middleware=[flows]) as bus:
        moves = [Moved(parcel=key, number=number) for number in range(EACH) for key in KEYS]
        while moves:
            part, moves = moves[:10], moves[10:]
            await bus.publish(*part)
            await bus.advance(random.uniform(0, 20))
            match random.randrange(5):
                case 0:
                    await bus.crash()
                    running.update(dict.fromkeys(KEYS, 0))
                case 1:
                    flows.handler.flow.hold("test", random.choice([0, 0, 1, 2]))
                case 2:
                    flows.handler.flow.release("test")
        flows.handler.flow.release("test")
        await bus.advance(1)
        await bus.settled(within=30)
        assert bus.dead_letters() == []
    assert first == {key: list(range(EACH)) for key in KEYS}
