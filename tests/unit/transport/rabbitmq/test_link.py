"""The link against a peer that is played by hand."""

from __future__ import annotations

import asyncio
import gc
import socket

import pamqp.frame
import pytest
from pamqp import commands

from bus.errors import Fate
from bus.transport.rabbitmq import channel as channel_module
from bus.transport.rabbitmq import link as link_module
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import Address
from bus.transport.rabbitmq.channel import ChannelClosed, LinkLost
from bus.transport.rabbitmq.link import HIGH_WATER, Link
from tests.unit.forked import FORKS, forked

from .peer import connected, parcel, returned


# frames


async def test_messages_are_cut_to_the_frames_that_the_broker_takes() -> None:
    async with connected(frame_max=8192) as (link, peer):
        channel = await peer.open_channel(link)
        channel.publish([parcel("1", body=b"x" * 20_000)])
        sizes = [len(await peer.frame()) for _ in range(5)]
        assert sizes[2:] == [8192, 8192, 20_000 - 2 * 8184 + 8]
        with pytest.raises(wire.Malformed, match="a frame takes"):
            channel.publish([parcel("2", properties=b"x" * 8192)])


async def test_frames_that_come_in_crumbs_are_put_together() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        got: list[bytes] = []
        channel.on_delivery = lambda received: got.append(received.body)
        deliver = pamqp.frame.marshal(commands.Basic.Deliver("tag", 1, False, "", "q"), 1)
        stream = b"".join(deliver + wire.content(1, 0, b"", bytes([n]) * n, 64) for n in range(150))
        at = 0
        while at < len(stream):
            size = 1 + at % 9
            link.data_received(stream[at : at + size])
            at += size
        assert got == [bytes([n]) * n for n in range(150)]


async def test_a_publish_with_one_message_that_does_not_fit_writes_none() -> None:
    async with connected(frame_max=4096) as (link, peer):
        channel = await peer.open_channel(link)
        with pytest.raises(wire.Malformed):
            channel.publish([parcel("1"), parcel("2", properties=b"x" * 5000)])
        with pytest.raises(wire.Malformed):
            channel.publish([parcel("1"), parcel("2", key="k" * 256)])
        batch = channel.publish([parcel("3")])
        await peer.expect(commands.Basic.Publish)
        assert b"\x013" in await peer.frame()
        peer.send(commands.Basic.Ack(1), 1)
        assert await batch.future == [Fate.STORED]


async def test_a_command_that_cannot_be_written_leaves_the_replies_in_order() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        with pytest.raises(TypeError, match="Unsupported numeric value"):
            await channel.rpc(commands.Queue.Declare(queue="q", arguments={"x": 1 << 70}))
        asking = asyncio.ensure_future(channel.rpc(commands.Queue.Declare(queue="q")))
        await peer.expect(commands.Queue.Declare)
        peer.send(commands.Queue.DeclareOk("q", 7, 0), 1)
        assert (await asking).message_count == 7


# confirms and returns


async def test_a_message_that_comes_back_without_an_id_is_known_by_its_properties() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        batch = channel.publish([parcel("1"), parcel("2", properties=b""), parcel("3")])
        peer.writer.write(returned(""))
        peer.send(commands.Basic.Ack(3, True), 1)
        assert await batch.future == [Fate.STORED, Fate.UNROUTABLE, Fate.STORED]


async def test_a_message_whose_headers_the_broker_changed_is_known_by_its_id() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        batch = channel.publish([parcel("1"), parcel("2", properties=wire.short("2") + b"more"), parcel("3")])
        peer.writer.write(returned("3") + returned("2"))
        peer.send(commands.Basic.Ack(3, True), 1)
        assert await batch.future == [Fate.STORED, Fate.UNROUTABLE, Fate.UNROUTABLE]


async def test_a_message_that_cannot_be_told_is_the_oldest_that_was_sent_there() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        batch = channel.publish([parcel("1", key="other"), parcel("2"), parcel("3")])
        peer.writer.write(returned("changed"))
        peer.send(commands.Basic.Ack(3, True), 1)
        assert await batch.future == [Fate.STORED, Fate.UNROUTABLE, Fate.STORED]


async def test_each_message_of_a_batch_has_a_fate_of_its_own() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        batch = channel.publish([parcel(str(n)) for n in range(6)])
        peer.send(commands.Basic.Nack(2, True), 1)
        peer.send(commands.Basic.Ack(4), 1)
        peer.writer.write(returned("5"))
        peer.send(commands.Basic.Ack(6), 1)
        peer.send(commands.Channel.Close(404, "NOT_FOUND - no exchange 'exchange'", 60, 40), 1)
        assert await batch.future == [
            Fate.REFUSED,
            Fate.REFUSED,
            Fate.UNKNOWN,
            Fate.STORED,
            Fate.UNKNOWN,
            Fate.UNROUTABLE,
        ]
        assert isinstance(channel.error, ChannelClosed)
        assert channel.error.code == 404
        assert link.error is None


# channels


async def test_acks_go_out_before_the_channel_closes() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)

        async def finish() -> bool:
            for tag in (1, 2, 3):
                channel.settle(tag)
            return await channel.aclose()

        closing = asyncio.ensure_future(finish())
        ack = await peer.expect(commands.Basic.Ack)
        assert (ack.delivery_tag, ack.multiple) == (3, True)
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.CloseOk(), 1)
        assert await closing


async def test_acks_go_out_before_the_link_closes() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)

        async def finish() -> None:
            channel.settle(1)
            await link.aclose()

        closing = asyncio.ensure_future(finish())
        await peer.expect(commands.Basic.Ack)
        await peer.expect(commands.Connection.Close)
        peer.send(commands.Connection.CloseOk())
        await closing


async def test_nothing_is_written_to_a_channel_after_its_close() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        channel.leave()
        channel.settle(1)
        channel.release([2])
        assert await channel.publish([parcel("1")]).future == [Fate.UNKNOWN]
        with pytest.raises(LinkLost):
            await channel.rpc(commands.Basic.Qos(prefetch_count=1))
        await peer.expect(commands.Channel.Close)
        another = asyncio.ensure_future(link.channel())
        await peer.expect(commands.Channel.Open)
        peer.send(commands.Channel.OpenOk(), 2)
        await another


async def test_a_close_that_nobody_answers_is_told_and_keeps_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "GOODBYE", 0.01)
    async with connected(channel_max=2) as (link, peer):
        channel = await peer.open_channel(link)
        assert not await channel.aclose()
        await peer.expect(commands.Channel.Close)
        assert (await peer.open_channel(link)).number == 2
        with pytest.raises(ChannelClosed, match="all 2 channels"):
            await link.channel()
        peer.send(commands.Channel.CloseOk(), 1)
        assert await channel.aclose()
        assert (await peer.open_channel(link)).number == 1


async def test_two_closes_that_cross_free_the_number_once_both_are_answered() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        channel.leave()
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.Close(406, "PRECONDITION_FAILED", 0, 0), 1)
        await peer.expect(commands.Channel.CloseOk)
        assert (await peer.open_channel(link)).number == 2
        peer.send(commands.Channel.CloseOk(), 1)
        assert await channel.aclose()
        assert (await peer.open_channel(link)).number == 1


async def test_an_opening_that_is_cancelled_leaves_no_channel() -> None:
    async with connected() as (link, peer):
        opening = asyncio.ensure_future(link.channel())
        await peer.expect(commands.Channel.Open)
        opening.cancel()
        peer.send(commands.Channel.OpenOk(), 1)
        await peer.expect(commands.Channel.Close)
        peer.send(commands.Channel.CloseOk(), 1)
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert (await peer.open_channel(link)).number in (1, 2)
        assert len(link._channels) == 1


@pytest.mark.parametrize("wants", [True, False])
async def test_a_cancelled_consumer_is_told_and_answered_where_the_broker_wants_it(wants: bool) -> None:
    async with connected(accept_consumer_cancel_ok=wants) as (link, peer):
        channel = await peer.open_channel(link)
        cancelled = asyncio.Event()
        channel.on_cancelled = cancelled.set
        peer.send(commands.Basic.Cancel("tag", True), 1)
        await cancelled.wait()
        channel.settle(1)
        if wants:
            assert (await peer.expect(commands.Basic.CancelOk)).consumer_tag == "tag"
        await peer.expect(commands.Basic.Ack)


# flow


async def test_many_who_wait_to_write_overshoot_by_one_turn_at_most() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        transport = link._transport
        assert transport is not None
        size, most, written = 1 << 16, 0, 0

        async def publisher() -> None:
            nonlocal most, written
            for _ in range(4):
                await link.writable()
                channel.publish([parcel("1", body=bytes(size))])
                written += size
                most = max(most, transport.get_write_buffer_size() + link._out_bytes)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(100):
                tasks.create_task(publisher())
            for _ in range(200):
                await peer.frame()
            assert written < 400 * size, "nobody waited"
            for _ in range(3 * 400 - 200):
                await peer.frame()
        assert most <= HIGH_WATER + 3 * size


async def test_who_waits_to_write_is_told_that_the_link_is_lost() -> None:
    async with connected() as (link, peer):
        peer.send(commands.Connection.Blocked("low on memory"))
        while link.open_for_writing:
            await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(link.writable()) for _ in range(10)]
        await asyncio.sleep(0)
        peer.writer.transport.abort()
        for told in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(told, LinkLost)


async def test_a_blocked_link_is_not_ended_by_the_kernel() -> None:
    async with connected(heartbeat=7) as (link, peer):
        assert link._transport is not None
        sock = link._transport.get_extra_info("socket")

        option = getattr(socket, "TCP_USER_TIMEOUT", None)  # where there is none, there is nothing to take back

        def limited(to: int) -> bool:
            return option is None or sock.getsockopt(socket.IPPROTO_TCP, option) == to

        peer.send(commands.Connection.Blocked("low on memory"))
        while link.open_for_writing:
            await asyncio.sleep(0)
        assert limited(to=0)
        peer.send(commands.Connection.Unblocked())
        await link.writable()
        assert limited(to=14_000)


# life


async def test_a_loop_that_was_busy_reads_before_it_judges() -> None:
    async with connected(heartbeat=1) as (link, peer):
        heard = asyncio.Event()
        channel = await peer.open_channel(link)
        channel.on_cancelled = heard.set
        link._heard -= 100
        link._beat()  # the timer that fires first after a long block
        assert link.error is None
        peer.send(commands.Basic.Cancel("tag", True), 1)
        await heard.wait()
        link._heard -= 100  # and it is busy again
        link._beat()
        assert link.error is None


async def test_a_peer_that_stays_silent_is_given_up() -> None:
    async with connected(heartbeat=1) as (link, peer):
        channel = await peer.open_channel(link)
        batch = channel.publish([parcel("1")])
        link._heard -= 100
        link._beat()
        link._beat()
        assert "no heartbeat for 1" in str(link.error)
        assert await batch.future == [Fate.UNKNOWN]


async def test_signs_of_life_are_sent_while_nothing_else_is() -> None:
    async with connected(heartbeat=1) as (_, peer):
        assert await peer.reader.readexactly(8) == wire.HEARTBEAT


async def test_a_goodbye_that_nobody_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "GOODBYE", 0.01)
    async with connected() as (link, _):
        await link.aclose()
        assert "without the broker's answer" in str(link.error)


async def test_a_goodbye_that_is_cancelled_still_ends_the_link() -> None:
    async with connected() as (link, peer):
        closing = asyncio.ensure_future(link.aclose())
        await peer.expect(commands.Connection.Close)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert link.error is not None


async def test_a_lost_link_is_never_a_cancellation() -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        batches = [channel.publish([parcel("1")]) for _ in range(3)]
        asking = asyncio.ensure_future(channel.rpc(commands.Basic.Qos(prefetch_count=1)))
        await asyncio.sleep(0)
        peer.writer.transport.abort()
        assert [await batch.future for batch in batches] == [[Fate.UNKNOWN]] * 3
        with pytest.raises(LinkLost, match="connection lost"):
            await asking
        assert await channel.publish([parcel("2")]).future == [Fate.UNKNOWN]
        with pytest.raises(LinkLost):
            await link.channel()


async def test_a_link_that_nobody_waits_for_any_more_ends_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    link = Link(Address(host="127.0.0.1", port=1, vhost="/", login="guest", password="guest"))
    link.connection_lost(None)
    del link
    gc.collect()
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text


# forks


@FORKS
async def test_a_forked_child_does_not_keep_its_parents_link_open() -> None:
    async with connected() as (link, peer):
        with forked():
            link.give_up("killed")
            async with asyncio.timeout(20):
                assert await peer.reader.read() == b""


@FORKS
async def test_whatever_a_forked_child_does_to_its_copy_of_a_link_the_parents_works_on() -> None:
    async with connected() as (link, peer):
        with forked(lambda: link.give_up("it is the parent's")):
            channel = await peer.open_channel(link)
            batch = channel.publish([parcel("1")])
            peer.send(commands.Basic.Ack(1), 1)
            assert await batch.future == [Fate.STORED]
