"""Work that is done for many who ask at once."""

from __future__ import annotations

import asyncio

from bus.lots import Lots


async def test_who_is_cancelled_takes_nobody_along() -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), []

    async def work(items: object) -> list[int]:
        begun.set()
        await go.wait()
        done.append(items)
        return [10 * item for item in items]  # type: ignore[attr-defined]

    lots: Lots[int, int] = Lots(work, asyncio.Lock())
    async with asyncio.TaskGroup() as tasks:
        first, second, third = [tasks.create_task(lots(number)) for number in (1, 2, 3)]
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        second.cancel()
        await asyncio.wait([second])
        go.set()
        assert await third == 30
    assert done == [[3]]


async def test_a_lot_that_fails_fails_for_each_and_the_next_goes_on() -> None:
    failing = True

    async def work(items: object) -> list[int]:
        await asyncio.sleep(0)
        if failing:
            raise OSError("no")
        return list(items)  # type: ignore[call-overload, no-any-return]

    lots: Lots[int, int] = Lots(work, asyncio.Lock())
    assert all(isinstance(r, OSError) for r in await asyncio.gather(lots(1), lots(2), return_exceptions=True))
    failing = False
    assert await lots(3) == 3


async def test_who_has_his_result_does_not_wait_for_whoever_has_the_turn_next() -> None:
    turn = asyncio.Lock()

    async def work(items: object) -> list[int]:
        await asyncio.sleep(0)
        return list(items)  # type: ignore[call-overload, no-any-return]

    lots: Lots[int, int] = Lots(work, turn)
    await turn.acquire()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(lots(1))
        await asyncio.sleep(0)
        another = tasks.create_task(turn.acquire())
        await asyncio.sleep(0)
        second = tasks.create_task(lots(2))
        await asyncio.sleep(0)
        turn.release()
        async with asyncio.timeout(5):
            assert (await first, await second) == (1, 2)
        assert await another
