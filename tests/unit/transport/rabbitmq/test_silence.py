"""What counts as silence of a broker."""

from __future__ import annotations

import asyncio

from bus.errors import Fate
from bus.transport.rabbitmq.channel import Batch
from bus.transport.rabbitmq.silence import Silence


def sent() -> Batch:
    return Batch(1, asyncio.get_running_loop().create_future())


def confirmed() -> Batch:
    batch = sent()
    batch.one(0, Fate.STORED)
    return batch


async def test_nobody_waits_so_nothing_is_silent() -> None:
    silence = Silence()
    assert [silence.look([], 0), silence.look([confirmed()], 0), silence.look([], 0)] == [0, 0, 0]


async def test_a_broker_is_silent_though_it_confirmed_later_messages_before() -> None:
    silence, batches = Silence(), [sent(), confirmed()]
    looks = silence.look(batches, 0)
    looks = silence.look(batches, looks)
    assert silence.look(batches, looks) == 2


async def test_what_is_over_without_a_fate_ends_no_silence() -> None:
    silence, first = Silence(), sent()
    looks = silence.look([first], 0)
    first.end()
    looks = silence.look([second := sent()], looks)
    second.end()
    assert silence.look([], looks) == 2


async def test_one_stuck_message_is_no_silence_while_later_ones_are_confirmed() -> None:
    silence, stuck = Silence(), sent()
    looks = silence.look([stuck], 0)
    for _ in range(5):
        looks = silence.look([stuck, confirmed()], looks)
        assert looks == 0


async def test_a_confirm_of_what_waited_ends_it() -> None:
    silence, first = Silence(), sent()
    looks = silence.look([first], 0)
    looks = silence.look([first], looks)
    assert looks == 1
    first.one(0, Fate.STORED)
    assert silence.look([], looks) == 0


async def test_a_big_batch_that_is_being_confirmed_is_no_silence() -> None:
    silence, big, looks = Silence(), Batch(100, asyncio.get_running_loop().create_future()), 0
    for number in range(5):
        looks = silence.look([big], looks)
        assert looks == 0
        big.one(number, Fate.STORED)
    looks = silence.look([big], looks)
    assert silence.look([big], looks) == 1
