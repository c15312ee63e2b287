"""The publisher against a peer that is played by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pamqp import commands

from bus import BusUnavailable, Fate, PublishRefused
from bus.transport.rabbitmq import publisher as publisher_module
from bus.transport.rabbitmq.address import Address
from bus.transport.rabbitmq.channel import Batch, Channel, Parcel
from bus.transport.rabbitmq.publisher import Publisher

from .peer import Linked, Peer, connected, open_channel, parcel, published, publishing


async def test_the_opening_of_a_channel_does_not_begin_anew_with_each_publish_whose_time_is_over() -> None:
    async with publishing(60) as (publisher, peer, _):
        loop = asyncio.get_running_loop()
        patient = asyncio.ensure_future(publisher.publish([parcel("patient")]))
        number, _ = await peer.command()
        for soon in (0.01, 0.02, 0.03):
            with pytest.raises(BusUnavailable):
                await publisher.publish([parcel("hasty")], loop.time() + soon)
        peer.send(commands.Channel.OpenOk(), number)
        await peer.expect(commands.Exchange.Declare)  # and not a second Channel.Open
        peer.send(commands.Exchange.DeclareOk(), number)
        for _ in range(2):
            number, command = await peer.command()
            if isinstance(command, commands.Channel.Open):
                peer.send(commands.Channel.OpenOk(), number)
        await peer.expect(commands.Confirm.Select)
        peer.send(commands.Confirm.SelectOk(), 2)
        number = await published(peer)
        peer.send(commands.Basic.Ack(1), number)
        await patient


async def test_a_publish_that_is_overdue_ends_though_one_that_waits_longer_was_sent_before_it() -> None:
    async with publishing(60) as (publisher, peer, _):
        loop = asyncio.get_running_loop()
        patient = asyncio.ensure_future(publisher.publish([parcel("patient")]))
        await open_channel(peer)
        number = await published(peer)
        with pytest.raises(BusUnavailable):
            await publisher.publish([parcel("hasty")], loop.time() + 0.05)
        assert not patient.done()
        peer.send(commands.Basic.Ack(1), number)
        await patient


async def test_p1_a_publish_ends_at_its_deadline_though_one_that_had_longer_is_confirmed_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher_module, "ASK_AFTER", 60)
    async with publishing(60) as (publisher, peer, _):
        loop = asyncio.get_running_loop()
        quick = asyncio.ensure_future(publisher.publish([parcel("quick")]))
        number = await open_channel(peer)
        await published(peer)
        peer.send(commands.Basic.Ack(1), number)
        await quick
        with pytest.raises(BusUnavailable):
            async with asyncio.timeout(10):
                await publisher.publish([parcel("late")], loop.time() + 0.05)


async def test_p1_a_publish_has_the_publish_timeout_whether_or_not_it_waits_for_a_channel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with publishing(60) as (publisher, peer, _):
        loop, send = asyncio.get_running_loop(), publisher._send
        spans: list[bool] = []

        def note(channel: Channel, parcels: Sequence[Parcel], deadline: float) -> Batch:
            spans.append(began + 60 <= deadline <= loop.time() + 60)
            return send(channel, parcels, deadline)

        monkeypatch.setattr(publisher, "_send", note)
        for tag in (1, 2):
            began = loop.time()
            publish = asyncio.ensure_future(publisher.publish([parcel(str(tag))]))
            if tag == 1:
                number = await open_channel(peer)
            await published(peer)
            peer.send(commands.Basic.Ack(tag), number)
            await publish
    assert spans == [True, True]


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("NOT_FOUND - no exchange 'exchange' in vhost '/'", True),
        ("NOT_FOUND - no exchange 'gone' in vhost 'exchange'", False),
        ("ACCESS_REFUSED - write access to exchange 'exchange' in vhost '/' refused for user 'guest'", True),
        ("ACCESS_REFUSED - access to exchange 'shop.retry' in vhost '/' refused for user 'exchange'", False),
    ],
)
async def test_a_bystander_is_not_refused_for_the_name_of_its_virtual_host_or_user(text: str, blamed: bool) -> None:
    async with publishing(60) as (publisher, peer, _):
        publishes = asyncio.ensure_future(publisher.publish([parcel("1")]))
        number = await open_channel(peer)
        await published(peer)
        peer.send(commands.Channel.Close(404, text, 60, 40), number)
        await peer.expect(commands.Channel.CloseOk)
        if blamed:
            with pytest.raises(PublishRefused):
                await publishes
            return
        number = await open_channel(peer)
        await published(peer)
        peer.send(commands.Basic.Ack(1), number)
        await publishes


TOO_LARGE = "PRECONDITION_FAILED - message size 11 is larger than configured max size 10"


async def test_p1_what_is_too_large_is_refused_at_once_and_who_shared_its_channel_is_sent_again() -> None:
    async with publishing(10) as (publisher, peer, _):
        large = asyncio.ensure_future(publisher.publish([parcel("large", body=b"x" * 11), parcel("beside")]))
        small = asyncio.ensure_future(publisher.publish([parcel("small", body=b"x" * 10)]))
        number = await open_channel(peer)
        for _ in range(3):
            await published(peer)
        peer.send(commands.Channel.Close(406, TOO_LARGE, 60, 40), number)
        await peer.expect(commands.Channel.CloseOk)
        number = await open_channel(peer)
        for _ in range(2):
            await published(peer)
        peer.send(commands.Basic.Ack(2, multiple=True), number)
        await small
        with pytest.raises(PublishRefused, match="11 bytes of body, and the broker's max_message_size is 10") as raised:
            await large
        assert raised.value.fates == {"large": Fate.REFUSED, "beside": Fate.STORED}

        # the next one closes nobody's channel
        again = asyncio.ensure_future(publisher.publish([parcel("small"), parcel("large", body=b"x" * 12)]))
        assert await published(peer) == number
        peer.send(commands.Basic.Ack(3), number)
        with pytest.raises(PublishRefused, match="12 bytes of body"):
            await again


async def test_a_channel_that_keeps_silent_is_not_published_on_again() -> None:
    async with publishing(0.05) as (publisher, peer, _):
        hasty = asyncio.ensure_future(publisher.publish([parcel("1")]))
        await open_channel(peer)
        silent = await published(peer)
        with pytest.raises(BusUnavailable):
            await hasty
        deadline = asyncio.get_running_loop().time() + 60
        again = asyncio.ensure_future(publisher.publish([parcel("1")], deadline))
        left, command = await peer.command()
        assert (left, type(command)) == (silent, commands.Channel.Close)
        number = await open_channel(peer)
        assert await published(peer) == number != silent
        peer.send(commands.Basic.Ack(1), number)
        await again


async def test_a_link_that_opens_no_channel_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "OPEN_WITHIN", 0.05)
    async with publishing(0.3) as (publisher, _, link):
        with pytest.raises(BusUnavailable, match="no answer"):
            await publisher.publish([parcel("1")])
        assert "no answer" in str(link.error)


async def test_a_link_that_answered_a_loop_that_was_busy_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "OPEN_WITHIN", 0.2)
    async with publishing(60) as (publisher, peer, link):
        publish = asyncio.ensure_future(publisher.publish([parcel("1")]))
        await open_channel(peer)
        time.sleep(0.3)  # the last answer has come meanwhile
        number = await published(peer)
        peer.send(commands.Basic.Ack(1), number)
        await publish
        assert link.error is None


async def test_a_blocked_link_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "OPEN_WITHIN", 0.05)
    async with publishing(0.3) as (publisher, peer, link):
        peer.send(commands.Connection.Blocked("low on memory"))
        while not link.blocked:
            await asyncio.sleep(0)
        with pytest.raises(BusUnavailable):
            await publisher.publish([parcel("1")])
        assert link.error is None
        assert "low on memory" in link.blocked


@pytest.mark.parametrize("another", [True, False], ids=["another", "the same"])
async def test_a_host_that_confirmed_nothing_is_cut_off_where_another_confirms_and_not_where_it_does_so_itself(
    another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "ASK_AFTER", 0.02)
    cut_off: list[Address] = []
    async with connected() as (first, silent), connected() as (second, confirming), asyncio.TaskGroup() as tasks:
        if not another:
            monkeypatch.setattr(second, "address", first.address)
        supervisor: Any = Linked(first, second)
        publisher = Publisher(supervisor, "events", 60, lambda address, _: cut_off.append(address))
        keeping = tasks.create_task(publisher.keep())
        publish = tasks.create_task(publisher.publish([parcel("1")]))
        await open_channel(silent)
        await published(silent)
        await answers_until_it_is_left(silent)
        assert cut_off == []
        monkeypatch.setattr(publisher_module, "ASK_AFTER", 60)
        channel = await open_channel(confirming)
        assert await published(confirming) == channel
        confirming.send(commands.Basic.Ack(1), channel)
        await publish
        assert cut_off == [first.address] * another
        await publisher.aclose()
        keeping.cancel()


async def answers_until_it_is_left(peer: Peer) -> None:
    """Answer whatever is asked, and confirm nothing."""
    while True:
        try:
            number, command = await peer.command()
        except asyncio.IncompleteReadError:
            return
        if isinstance(command, commands.Channel.Open):
            peer.send(commands.Channel.OpenOk(), number)
        elif isinstance(command, commands.Channel.Close):
            peer.send(commands.Channel.CloseOk(), number)
