"""Removing parts side by side, with what removes each of them replaced."""

from __future__ import annotations

import asyncio

import pytest

from bus import BusUnavailable
from bus.topology import Part, Pruned
from bus.transport.rabbitmq.prune import AT_ONCE, _each


async def test_what_is_being_removed_is_ended_though_another_fails() -> None:
    parts = [Part(kind="queue", name=f"stock.{number}") for number in range(AT_ONCE + 1)]
    failed, ended = asyncio.Event(), []

    async def remove(part: Part) -> Pruned:
        if part is parts[0]:
            failed.set()
            raise BusUnavailable("the broker did not answer", {})
        await failed.wait()
        # a message that came in is put back here
        await asyncio.sleep(0)
        ended.append(part)
        return Pruned(part=part)

    with pytest.raises(BusUnavailable, match="did not answer"):
        await _each(parts, remove)
    assert ended == parts[1:AT_ONCE], "those that were begun are ended, and no other is begun"
