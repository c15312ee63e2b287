"""The entrance to a service's streams, against a peer that confirms as RabbitMQ 3.10 does when a leader changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from pamqp import commands

from bus import BusUnavailable, Fate, PublishRefused, Unroutable
from bus.transport.rabbitmq.entrance import Entrance

from .peer import Peer, open_channel, parcel, published, publishing, returned


@asynccontextmanager
async def entrance(timeout: float) -> AsyncIterator[tuple[Entrance, Peer]]:
    async with publishing(timeout, whole=True) as (publisher, peer, _):
        yield Entrance(publisher, lambda: None), peer


def storing(entrance: Entrance, *ids: str) -> asyncio.Task[None]:
    return asyncio.ensure_future(entrance.store([parcel(id) for id in ids]))


async def begun(entrance: Entrance, peer: Peer, id: str = "0") -> tuple[asyncio.Task[None], int]:
    """Begin to store one, and return that and the channel by which it went; it waits for its confirm."""
    first = storing(entrance, id)
    channel = await open_channel(peer)
    assert await published(peer) == channel
    return first, channel


async def another(peer: Peer, left: int) -> int:
    """Answer as one channel is closed and another opened; return that."""
    closed, command = await peer.command()
    assert (closed, type(command)) == (left, commands.Channel.Close)
    number = await open_channel(peer)
    assert number != left
    return number


async def confirmed(peer: Peer, numbers: Sequence[int], channel: int) -> None:
    """Read what was published, and confirm it."""
    for number in numbers:
        assert await published(peer) == channel
        peer.send(commands.Basic.Ack(number), channel)


async def test_nothing_is_sent_behind_what_waits_for_its_confirm_and_what_comes_meanwhile_goes_together() -> None:
    async with entrance(60) as (letters, peer):
        first, channel = await begun(letters, peer, "1")
        others = [storing(letters, "2"), storing(letters, "3", "4")]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await peer.frame()
        peer.send(commands.Basic.Ack(1), channel)
        for _ in range(3):
            assert await published(peer) == channel
        peer.send(commands.Basic.Ack(4, multiple=True), channel)
        await asyncio.gather(first, *others)


async def test_a_confirm_is_not_believed_where_an_older_one_is_missing_and_all_go_again_by_another_channel() -> None:
    async with entrance(0.1) as (letters, peer):
        lot = storing(letters, "1", "2", "3")
        silent = await open_channel(peer)
        for _ in range(3):
            await published(peer)
        for number in (2, 3):
            peer.send(commands.Basic.Ack(number), silent)
        with pytest.raises(BusUnavailable) as raised:
            await lot
        assert raised.value.fates == dict.fromkeys("123", Fate.UNKNOWN)

        again = storing(letters, "1", "2", "3")
        channel = await another(peer, silent)
        await confirmed(peer, (1, 2, 3), channel)
        await again


async def test_what_a_cancelled_one_left_behind_is_not_followed_by_anything_on_its_channel() -> None:
    async with entrance(60) as (letters, peer):
        impatient, left = await begun(letters, peer, "1")
        impatient.cancel()
        patient = storing(letters, "2")
        channel = await another(peer, left)
        await confirmed(peer, (1,), channel)
        await patient
        assert impatient.cancelled()


async def test_two_of_one_id_are_told_apart() -> None:
    async with entrance(60) as (letters, peer):
        waits, channel = await begun(letters, peer)
        twins = [storing(letters, "1"), storing(letters, "1")]
        await asyncio.sleep(0)
        peer.send(commands.Basic.Ack(1), channel)
        await confirmed(peer, (2,), channel)
        await confirmed(peer, (3,), channel)
        await asyncio.gather(waits, *twins)


async def test_each_is_told_its_own_fate() -> None:
    async with entrance(60) as (letters, peer):
        waits, channel = await begun(letters, peer)
        wanted, unwanted = storing(letters, "1"), storing(letters, "2")
        await asyncio.sleep(0)
        peer.send(commands.Basic.Ack(1), channel)
        for _ in range(2):
            await published(peer)
        peer.writer.write(returned("2", channel=channel))
        peer.send(commands.Basic.Ack(3, multiple=True), channel)
        await asyncio.gather(waits, wanted)
        with pytest.raises(Unroutable):
            await unwanted


async def test_a_letter_that_fits_into_no_frame_takes_no_other_along() -> None:
    async with entrance(60) as (letters, peer):
        waits, channel = await begun(letters, peer)
        good = [storing(letters, "1"), storing(letters, "2")]
        too_long = asyncio.ensure_future(letters.store([parcel("3", properties=b"x" * 200_000)]))
        await asyncio.sleep(0)
        peer.send(commands.Basic.Ack(1), channel)
        await confirmed(peer, (2, 3), channel)
        await asyncio.gather(waits, *good)
        with pytest.raises(PublishRefused, match="do not fit into a frame"):
            await too_long


async def test_a_letter_that_is_too_large_holds_up_no_other() -> None:
    async with entrance(10) as (letters, peer):
        waits, channel = await begun(letters, peer)
        too_large = asyncio.ensure_future(letters.store([parcel("1", body=b"x" * 11)]))
        good = storing(letters, "2")
        await asyncio.sleep(0)
        peer.send(commands.Basic.Ack(1), channel)
        for _ in range(2):
            await published(peer)
        text = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10"
        peer.send(commands.Channel.Close(406, text, 60, 40), channel)
        await peer.expect(commands.Channel.CloseOk)
        await confirmed(peer, (1,), await open_channel(peer))
        await asyncio.gather(waits, good)
        with pytest.raises(PublishRefused, match="11 bytes"):
            await too_large
