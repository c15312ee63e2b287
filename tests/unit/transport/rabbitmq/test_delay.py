"""The bits of a delay: together never below what was asked, and less than one unit above."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import AsyncMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.clock import LONGEST_DELAY
from bus.transport.rabbitmq.delay import BIT, DUE, LEVELS, UNIT, _declare_level, entrance, headers, parts
from bus.transport.rabbitmq.topology import Names


NAMES = Names("blue")


def levels(delay: timedelta) -> list[int]:
    """Return the levels in whose queues a message waits."""
    told = headers(delay, "events")
    return [level for level in range(LEVELS) if told.get(f"{BIT}{level}") is True]


@given(st.timedeltas(min_value=timedelta(microseconds=1), max_value=LONGEST_DELAY))
def test_the_bits_sum_to_the_delay_or_less_than_a_unit_more(delay: timedelta) -> None:
    waited = sum(((1 << level) * UNIT for level in levels(delay)), timedelta())
    assert delay <= waited < delay + UNIT


async def test_the_queue_of_a_level_holds_a_message_for_as_long_as_its_bit_says() -> None:
    channel = AsyncMock()
    for level in range(LEVELS):
        await _declare_level(channel, NAMES, level, AsyncMock())
    asked = {call.args[0]: call.kwargs["arguments"]["x-message-ttl"] for call in channel.declare_queue.call_args_list}
    assert asked == {f"blue.delay.{level}": (1 << level) * UNIT // timedelta(milliseconds=1) for level in range(LEVELS)}


def walked(delay: timedelta, due: str) -> tuple[timedelta, int]:
    """Return how long a message waits on its way through the cascade as it is bound, and how many queues it was in."""
    told, waited, queues = headers(delay, due), timedelta(), 0
    for level in range(int(entrance(NAMES, delay).removeprefix("blue.delay.")), -1, -1):
        # bound by the header of the level: true is its queue, false the next level, and none is nowhere
        if told[f"{BIT}{level}"]:
            waited, queues = waited + (1 << level) * UNIT, queues + 1
    assert told[DUE] == due
    return waited, queues


@given(
    st.timedeltas(min_value=timedelta(microseconds=1), max_value=LONGEST_DELAY), st.sampled_from(["events", "queue"])
)
def test_a_walk_through_the_cascade_is_never_early_and_less_than_a_unit_late(delay: timedelta, due: str) -> None:
    waited, queues = walked(delay, due)
    assert delay <= waited < delay + UNIT
    assert 1 <= queues <= LEVELS


@given(st.timedeltas(min_value=timedelta(microseconds=1), max_value=LONGEST_DELAY))
def test_a_delay_enters_at_its_highest_bit_and_every_lower_level_is_told_where_to_send_it(delay: timedelta) -> None:
    highest = max(levels(delay))
    assert entrance(NAMES, delay) == f"blue.delay.{highest}"
    told = headers(delay, "queue")
    assert set(told) == {DUE, *(f"{BIT}{level}" for level in range(highest + 1))}
    assert all(isinstance(told[f"{BIT}{level}"], bool) for level in range(highest + 1))
    assert all(name == DUE or name.startswith(BIT) for name in told)


@pytest.mark.parametrize(
    ("milliseconds", "units"), [(1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (201, 3), (25_500, 255), (25_501, 256)]
)
def test_the_edges_of_a_unit(milliseconds: int, units: int) -> None:
    assert sum(1 << level for level in levels(timedelta(milliseconds=milliseconds))) == units


def test_the_longest_delay_fits_into_the_levels() -> None:
    assert LONGEST_DELAY <= ((1 << LEVELS) - 1) * UNIT
    assert max(levels(LONGEST_DELAY)) == LEVELS - 1


def test_every_part_is_looked_for_and_none_is_changed() -> None:
    commands = parts(NAMES)
    assert all(command.passive for command in commands)  # type: ignore[attr-defined]
    names = {getattr(command, "exchange", "") or getattr(command, "queue", "") for command in commands}
    assert {f"blue.delay.{level}" for level in range(LEVELS)} < names
    assert len(commands) == 2 * LEVELS + 6
