from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bus.errors import TidegateError
from bus.transport.rabbitmq.inbox import PER_TURN, Inbox


def received(number: int, channel: Any = None) -> Any:
    return SimpleNamespace(number=number, channel=channel, method=bytes(14))


class Taken(list[int]):
    """What a task for each of so many deliveries took, in order."""

    def __init__(self, inbox: Inbox, tasks: asyncio.TaskGroup, size: int) -> None:
        super().__init__()
        for _ in range(size):
            tasks.create_task(self._take(inbox))

    async def _take(self, inbox: Inbox) -> None:
        self.append((await inbox.get()).number)  # type: ignore[attr-defined]


async def turn() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("waiting", [True, False], ids=["somebody waits", "nobody waits yet"])
async def test_beside_others_a_flood_is_handed_out_a_few_a_turn_and_in_order(waiting: bool) -> None:
    flooded = Inbox([1, 2])
    size = 5 * PER_TURN
    async with asyncio.TaskGroup() as tasks:
        if waiting:
            taken = Taken(flooded, tasks, size)
            await turn()
        for number in range(size):
            flooded.put(received(number))
        if not waiting:
            taken = Taken(flooded, tasks, size)
        before, most = 0, 0
        while len(taken) < size:
            await turn()
            most, before = max(most, len(taken) - before), len(taken)
    assert taken == list(range(size))
    assert most <= PER_TURN


async def test_alone_it_hands_out_all_that_there_is() -> None:
    alone = Inbox([1])
    async with asyncio.TaskGroup() as tasks:
        taken = Taken(alone, tasks, 20)
        await turn()
        for number in range(20):
            alone.put(received(number))
        await turn()
        assert taken == list(range(20))


async def test_a_cancelled_wait_loses_nothing_and_keeps_the_order() -> None:
    inbox = Inbox([1, 2])
    first = asyncio.ensure_future(inbox.get())
    second = asyncio.ensure_future(inbox.get())
    await turn()
    inbox.put(received(1))
    inbox.put(received(2))
    first.cancel()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert {(await second).number, (await inbox.get()).number} == {1, 2}  # type: ignore[attr-defined]


async def test_what_has_come_is_handed_out_before_the_error_is_told() -> None:
    inbox = Inbox([1, 2])
    for number in range(2 * PER_TURN):
        inbox.put(received(number))
    inbox.fail(TidegateError("gone"))
    async with asyncio.TaskGroup() as tasks:
        taken = Taken(inbox, tasks, 2 * PER_TURN)
    assert taken == list(range(2 * PER_TURN))
    with pytest.raises(TidegateError, match="gone"):
        await inbox.get()


async def test_who_waits_for_the_next_turn_is_told_of_the_error_when_nothing_is_left() -> None:
    inbox = Inbox([1, 2])
    for number in range(PER_TURN + 1):
        inbox.put(received(number))
    inbox.fail(TidegateError("gone"))
    async with asyncio.timeout(5):
        got = await asyncio.gather(*(inbox.get() for _ in range(PER_TURN + 2)), return_exceptions=True)
    assert [type(each) for each in got[-2:]] == [SimpleNamespace, TidegateError]


async def test_what_came_by_a_lost_channel_is_taken_back() -> None:
    inbox, lost, other = Inbox([1, 2]), object(), object()
    for number, channel in enumerate([lost, other, lost]):
        inbox.put(received(number, channel))
    assert [each.number for each in inbox.take_back(lost)] == [0, 2]  # type: ignore[arg-type, attr-defined]
    assert (await inbox.get()).number == 1  # type: ignore[attr-defined]
