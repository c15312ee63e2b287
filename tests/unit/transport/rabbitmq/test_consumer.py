"""A feed, and the record as it is followed, on a broker that is played by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pamqp.frame
import pytest
from pamqp import commands
from pamqp.base import Frame

from bus import AccessRefused
from bus.transport.rabbitmq import consumer, doubts, moves, wire
from bus.transport.rabbitmq.consumer import Feed
from bus.transport.rabbitmq.doubts import Doubts
from bus.transport.rabbitmq.inbox import Inbox
from bus.transport.rabbitmq.moves import Moves
from bus.transport.rabbitmq.topology import Names

from .peer import Linked, Peer, connected


SHORT = 0.1
"""Seconds that stand for each bound here."""
REFUSED = commands.Channel.Close(403, "ACCESS_REFUSED - access to queue 'q' refused", 60, 20)
ANSWERS: dict[type[Frame], Frame] = {
    commands.Channel.Open: commands.Channel.OpenOk(),
    commands.Basic.Qos: commands.Basic.QosOk(),
    commands.Basic.Consume: commands.Basic.ConsumeOk("1"),
    commands.Channel.Close: commands.Channel.CloseOk(),
    commands.Queue.Declare: commands.Queue.DeclareOk("q", 0, 0),
}


@pytest.fixture(autouse=True)
def short_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("PROBE_AFTER", "ANSWER_WITHIN", "CONSUME_WITHIN"):
        monkeypatch.setattr(consumer, bound, SHORT)
    for bound in ("ASK_AFTER", "ANSWER_WITHIN"):
        monkeypatch.setattr(moves, bound, SHORT)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    among: set[Inbox] = set()
    yield Inbox(among)


@asynccontextmanager
async def feeding(inbox: Inbox, limit: int, *, ordered: bool = False) -> AsyncIterator[tuple[Feed, Peer]]:
    async with connected() as (link, peer), asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        supervisor: Any = Linked(link)
        feed = Feed(supervisor, "q", inbox, limit, None, Doubts(), ordered=ordered)
        keeping = tasks.create_task(feed.keep())
        yield feed, peer
        keeping.cancel()
        peer.writer.transport.abort()


async def asked(peer: Peer, *kinds: type[Frame]) -> int:
    """Answer such questions, which must come in this order; return the channel of the last."""
    number = 0
    for kind in kinds:
        number, command = await peer.command()
        assert isinstance(command, kind), command
        peer.send(ANSWERS[kind], number)
    return number


async def closed(peer: Peer, number: int, why: Frame) -> None:
    peer.send(why, number)
    await peer.expect(commands.Channel.CloseOk)


async def refused(peer: Peer) -> None:
    """Let the queue not be consumed."""
    number = await asked(peer, commands.Channel.Open, commands.Basic.Qos)
    await peer.expect(commands.Basic.Consume)
    await closed(peer, number, REFUSED)


def delivered(peer: Peer, number: int) -> None:
    deliver = pamqp.frame.marshal(commands.Basic.Deliver("1", 1, False, "", "q"), number)
    peer.writer.write(deliver + wire.content(number, 0, b"", b"body", 4096))


async def cancelled(peer: Peer, number: int) -> None:
    """Cancel the consumer of a queue that is not there any more."""
    peer.send(commands.Basic.Cancel("1", True), number)
    scratch = await asked(peer, commands.Channel.Open)
    await peer.expect(commands.Queue.Declare)
    await closed(peer, scratch, commands.Channel.Close(404, "NOT_FOUND", 50, 10))


async def idle(feed: Feed, peer: Peer) -> None:
    """Open the channel of a feed whose limit is 0."""
    await asked(peer, commands.Channel.Open)
    while not feed.consuming:
        await asyncio.sleep(0)


CONSUME = (commands.Channel.Open, commands.Basic.Qos, commands.Basic.Consume)


async def test_a_loop_that_stood_still_is_no_silence_of_the_broker(inbox: Inbox) -> None:
    async with feeding(inbox, 4, ordered=True) as (_, peer):
        for kind in (*CONSUME, commands.Basic.Qos, commands.Basic.Qos):
            number, command = await peer.command()
            assert (number, type(command)) == (1, kind)
            time.sleep(SHORT * 1.5)  # a handler that blocks, while the answer is on its way
            peer.send(ANSWERS[kind], number)


async def test_who_could_consume_waits_for_its_right_to_come_back_and_who_never_could_is_told(inbox: Inbox) -> None:
    async with feeding(inbox, 1) as (_, peer):
        await closed(peer, await asked(peer, *CONSUME), REFUSED)
        await refused(peer)
        number = await asked(peer, *CONSUME)
        delivered(peer, number)
        assert (await inbox.get()).body == b"body"
    never = Inbox(set())
    async with feeding(never, 1) as (_, peer):
        await refused(peer)
        with pytest.raises(AccessRefused, match="queue 'q'"):
            await never.get()


async def test_a_limit_that_is_cut_off_is_reached_all_the_same(inbox: Inbox) -> None:
    async with feeding(inbox, 0) as (feed, peer):
        await idle(feed, peer)
        async with asyncio.TaskGroup() as tasks:
            limiting = tasks.create_task(feed.limit(4))
            number, command = await peer.command()
            limiting.cancel()
        assert command.prefetch_count == 4
        peer.send(commands.Basic.QosOk(), number)
        await asked(peer, commands.Basic.Qos, commands.Basic.Consume)


async def test_no_question_comes_between_a_prefetch_and_its_consumer(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "CONSUME_WITHIN", 10)
    async with feeding(inbox, 0) as (feed, peer):
        await idle(feed, peer)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed.limit(4))
            number, command = await peer.command()
            assert command.prefetch_count == 4
            await asyncio.sleep(SHORT * 2)
            peer.send(commands.Basic.QosOk(), number)
            await asked(peer, commands.Basic.Consume)


async def test_what_was_acked_before_the_broker_cancels_is_in_doubt_and_what_is_acked_after_it_too(
    inbox: Inbox,
) -> None:
    async with feeding(inbox, 1) as (feed, peer):
        key = "/t", "5", 1, "", ""
        number = await asked(peer, *CONSUME)
        delivered(peer, number)
        channel = (await inbox.get()).channel
        channel.settled_last.append(key)
        await cancelled(peer, number)
        await asked(peer, commands.Channel.Open, commands.Queue.Declare, commands.Channel.Close, *CONSUME)
        assert channel.doubtful
        assert feed._doubts.settled(key, redelivered=True)


async def reached(peer: Peer, kind: type[Frame]) -> int:
    """Answer what asks for life until something else comes; return its channel."""
    while True:
        number, command = await peer.command()
        if isinstance(command, kind):
            return number
        peer.send(ANSWERS[type(command)], number)


async def test_l2_acks_are_in_doubt_until_so_much_time_was_spent_in_which_their_messages_could_come(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "LAST", 2 * SHORT)
    key = "/t", "5", 1, "", ""
    async with feeding(inbox, 0) as (feed, peer):
        await idle(feed, peer)
        feed._doubts.add([key])
        await asked(peer, *[commands.Basic.Qos] * 4)  # paused, or its breaker is open
        assert not feed._doubts.none
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed.limit(1))
            number = await reached(peer, commands.Basic.Consume)
            peer.send(ANSWERS[commands.Basic.Consume], number)
        delivered(peer, number)
        await asked(peer, *[commands.Basic.Qos] * 4)  # all that it may hold
        assert not feed._doubts.none
        (await inbox.get()).channel.settle(1)
        await reached(peer, commands.Basic.Ack)
        await asked(peer, *[commands.Basic.Qos] * 3)
        assert feed._doubts.none


async def test_a_source_that_is_looked_for_without_an_answer_is_looked_for_again(inbox: Inbox) -> None:
    async with feeding(inbox, 1) as (_, peer):
        await cancelled(peer, await asked(peer, *CONSUME))
        await asked(peer, commands.Channel.Open)
        await peer.expect(commands.Queue.Declare)  # never answered
        await asked(peer, commands.Channel.Close, commands.Channel.Open, commands.Queue.Declare)


@asynccontextmanager
async def following(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    async def read(_: Moves) -> bool:
        return True

    monkeypatch.setattr(Moves, "read", read)
    async with connected() as (link, peer), asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        supervisor: Any = Linked(link)
        following = tasks.create_task(Moves([], Names(), 1, supervisor).keep())
        yield peer
        following.cancel()
        peer.writer.transport.abort()


async def test_the_record_is_followed_again_after_its_channel_died_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with following(monkeypatch) as peer:
        await asked(peer, *CONSUME, commands.Basic.Qos)
        await peer.expect(commands.Basic.Qos)  # never answered
        await asked(peer, commands.Channel.Close, *CONSUME)


async def test_the_record_is_followed_again_by_who_could_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as peer:
        await closed(peer, await asked(peer, *CONSUME), REFUSED)
        await refused(peer)
        await asked(peer, *CONSUME)
