"""Answers against a peer that is played by hand: what they do where it takes nothing, or says nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import commands

from bus import Message
from bus.transport.rabbitmq import answers as answers_module
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.answers import Answers
from bus.transport.rabbitmq.link import Link

from .peer import Linked, Peer, connected, published


ADDRESS = "amq.gen-of-somebody"


class Kept(Linked):
    """Stands for a supervisor whose links are there already."""

    async def keep(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def answering(*links: Link) -> AsyncIterator[Answers]:
    supervisor: Any = Kept(*links)
    answers = Answers(supervisor)
    keeping = asyncio.create_task(answers.keep())
    try:
        yield answers
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


def reply(number: int) -> Message:
    return Message(id=str(number), type="quote.given", version=1, source="/t", time=datetime.now(UTC), body=b"{}")


async def opened(peer: Peer) -> int:
    number, command = await peer.command()
    assert isinstance(command, commands.Channel.Open)
    peer.send(commands.Channel.OpenOk(), number)
    await peer.expect(commands.Confirm.Select)
    peer.send(commands.Confirm.SelectOk(), number)
    return number


async def test_r4_an_answer_by_a_dead_link_goes_again_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "ASK_AFTER", 0.05)
    monkeypatch.setattr(answers_module, "OPEN_WITHIN", 1.0)
    async with connected() as (first, dead), connected() as (second, alive), answering(first, second) as answers:
        answers.send(ADDRESS, reply(1))
        await opened(dead)
        await published(dead)
        async with asyncio.timeout(10):
            number = await opened(alive)
            assert await published(alive) == number
        assert first.error is not None


async def test_r4_a_link_that_answered_a_loop_that_was_busy_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "OPEN_WITHIN", 0.2)
    async with connected() as (first, lost), connected() as (second, alive), answering(first, second) as answers:
        answers.send(ADDRESS, reply(1))
        await opened(lost)
        await published(lost)
        lost.writer.transport.abort()
        await opened(alive)
        time.sleep(0.3)  # the last answer has come meanwhile
        number = await published(alive)
        alive.send(commands.Basic.Ack(1), number)
        time.sleep(0.3)
        answers.send(ADDRESS, reply(2))
        assert await published(alive) == number
        assert second.error is None


async def test_r4_a_link_that_does_not_confirm_what_goes_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "OPEN_WITHIN", 1.0)
    async with connected() as (first, lost), connected() as (second, dead), answering(first, second) as answers:
        answers.send(ADDRESS, reply(1))
        await opened(lost)
        await published(lost)
        lost.writer.transport.abort()
        await opened(dead)
        await published(dead)
        async with asyncio.timeout(10):
            await second.closed.wait()


async def test_r4_answers_wait_while_the_broker_takes_nothing_and_only_so_many_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers_module, "MOST_WAITING", 2)
    async with connected() as (link, peer), answering(link) as answers:
        answers.send(ADDRESS, reply(1))
        number = await opened(peer)
        await published(peer)
        peer.send(commands.Connection.Blocked("low on memory"))
        while not link.blocked:
            await asyncio.sleep(0)
        for each in (2, 3, 4):
            answers.send(ADDRESS, reply(each))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await peer.frame()
        peer.send(commands.Connection.Unblocked())
        assert [await identified(peer), await identified(peer)] == [b"3", b"4"]
        assert number == 1


async def test_r4_an_answer_that_waited_for_a_blocked_link_goes_by_the_next_one() -> None:
    async with connected() as (first, dead), connected() as (second, alive), answering(first, second) as answers:
        answers.send(ADDRESS, reply(1))
        number = await opened(dead)
        await published(dead)
        dead.send(commands.Basic.Ack(1), number)
        dead.send(commands.Connection.Blocked("low on memory"))
        while not first.blocked:
            await asyncio.sleep(0)
        answers.send(ADDRESS, reply(2))
        for _ in range(5):
            await asyncio.sleep(0)  # it waits for the link by then
        dead.writer.transport.abort()
        async with asyncio.timeout(5):
            await opened(alive)
            assert await identified(alive) == b"2"
            await answers.aclose()


async def identified(peer: Peer) -> bytes:
    """Read one message and return its id."""
    await peer.expect(commands.Basic.Publish)
    header = await peer.frame()
    await peer.frame()
    return wire.properties(header[7:-1])["message_id"].encode()
