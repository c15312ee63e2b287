"""Acting on dead letters while something goes wrong: links that are lost, operators who leave, clocks that are off."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from bus import BusUnavailable, clock
from bus.transport.rabbitmq import desk
from bus.transport.rabbitmq.channel import Channel, LinkLost
from bus.transport.rabbitmq.desk import Desk
from bus.transport.rabbitmq.fold import Noted, Row
from bus.transport.rabbitmq.records import Entry
from bus.transport.rabbitmq.stream import Reader
from tests.contract.stage import Stage, staged

from .test_dead_letters import buried, listed, stage


__all__ = ["stage"]


async def test_a_listing_that_is_cancelled_anywhere_leaves_no_channel_open(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await buried(stage, 1)
    (letter,) = await listed(stage)
    dead = stage.transport.dead_letters
    link = await dead._streams.link()
    rpc, kept, asked, cancelled = Channel.rpc, len(link._channels), 0, 0

    async def leaving(self: Channel, command: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == cancelled and (task := asyncio.current_task()) is not None:
            task.cancel()
        return await rpc(self, command)

    monkeypatch.setattr(Channel, "rpc", leaving)
    while asked >= cancelled:
        cancelled, asked = cancelled + 1, 0
        looking = asyncio.create_task(listed(stage))
        await asyncio.wait([looking])
    assert looking.result() == [letter]
    assert cancelled > 5
    async with asyncio.timeout(5):
        while len(link._channels) > kept:
            await asyncio.sleep(0.01)


async def test_a_claim_that_was_lost_before_it_was_read_is_its_owners(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = await buried(stage, 1)
    dead = stage.transport.dead_letters
    assert await listed(stage) == [letter]

    async def lost(self: Reader) -> list[Entry]:
        (await dead._streams.link()).give_up("cut")
        raise LinkLost("cut")

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "next", lost)
        with pytest.raises(BusUnavailable):
            await dead.replay(letter)
    await dead.replay(letter)
    assert await stage.ready("shop.reserve") == 1
    assert await listed(stage) == []


async def test_who_takes_a_letter_over_waits_for_a_copy_that_is_under_way(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = await buried(stage, 1)
    now, check, hear = clock.now, Desk._require_ours, Desk._heard_out
    checked, taken_over = asyncio.Event(), asyncio.Event()

    async def slow(self: Desk, row: Row, claim: Noted) -> None:
        await check(self, row, claim)
        if checked.is_set():
            taken_over.set()
        checked.set()
        await taken_over.wait()

    async def told(self: Desk, row: Row, ours: Noted) -> bool:
        hearing = asyncio.ensure_future(hear(self, row, ours))
        await asyncio.sleep(0)
        if not hearing.done():
            taken_over.set()
        return await hearing

    monkeypatch.setattr(Desk, "_require_ours", slow)
    monkeypatch.setattr(Desk, "_heard_out", told)
    async with staged("rabbitmq", vhost) as other, asyncio.TaskGroup() as tasks:
        tasks.create_task(stage.transport.dead_letters.replay(letter))
        await checked.wait()
        monkeypatch.setattr(clock, "now", lambda: now() + timedelta(minutes=6))
        with pytest.raises(LookupError, match="is not open any more: replayed by"):
            await other.transport.dead_letters.replay(letter)
    assert await stage.ready("shop.reserve") == 1


async def test_who_stood_still_until_a_letter_was_taken_over_sends_nothing(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = await buried(stage, 1)
    now, send, claimed, go = clock.now, Desk._send, asyncio.Event(), asyncio.Event()

    async def slow(self: Desk, row: Row, claim: Noted, copy: Any) -> None:
        if not claimed.is_set():
            claimed.set()
            await go.wait()
        await send(self, row, claim, copy)

    monkeypatch.setattr(Desk, "_send", slow)
    monkeypatch.setattr(desk, "HEARD_OUT", 0.1)
    async with staged("rabbitmq", vhost) as other:
        standing = asyncio.create_task(stage.transport.dead_letters.replay(letter))
        await claimed.wait()
        monkeypatch.setattr(clock, "now", lambda: now() + timedelta(minutes=6))
        await other.transport.dead_letters.replay(letter)
        go.set()
        with pytest.raises(LookupError, match="is not open any more: replayed by"):
            await standing
    assert await stage.ready("shop.reserve") == 1


async def test_a_compaction_waits_for_what_its_replica_has_not_yet(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = await buried(stage, 3)
    await stage.transport.dead_letters.discard(letters[0])
    async with staged("rabbitmq", vhost) as other:
        assert await listed(other) == letters[1:]
        dead, more = other.transport.dead_letters, Reader.more
        replicated = dead._desk("shop").fold.next[0]
        await stage.transport.dead_letters.discard(letters[1])

        async def behind(self: Reader) -> list[Entry]:
            return [entry for entry in await more(self) if entry.generation or entry.offset < replicated]

        with monkeypatch.context() as patched:
            patched.setattr(Reader, "more", behind)
            await dead.compact("shop")
        assert await listed(other) == await listed(stage) == letters[2:]
