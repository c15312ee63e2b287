"""The link against peers that are no broker, refuse, or send garbage."""

from __future__ import annotations

import asyncio

import pamqp.frame
import pytest
from pamqp import commands

from bus.errors import Fate
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import Address
from bus.transport.rabbitmq.channel import LinkLost
from bus.transport.rabbitmq.link import Link, LinkRefused

from .peer import connected, listening, parcel


# strangers


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"no",
        b"\x01\x00\x00\xff\xff\xff\xff\x00",  # a frame of 4 GiB
        b"\x01\x00\x00\x00\x00\x00\x00\x00",  # a frame without its end
        b"\x07\x00\x00\x00\x00\x00\x00\xce",  # a frame of no known kind
    ],
)
async def test_a_peer_that_is_no_broker_is_told_at_once(greeting: bytes) -> None:
    async with listening() as (address, peers), asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(_refusal(address))
        (await peers.get()).writer.write(greeting)
        error = await connecting
    assert f"amqp://127.0.0.1:{address.port}" in str(error)
    assert f"does not speak AMQP 0-9-1: it began with {greeting[:16]!r}" in str(error)


async def test_a_broker_of_another_protocol_version_is_told_by_it() -> None:
    async with listening() as (address, peers), asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(_refusal(address))
        (await peers.get()).writer.write(b"AMQP\x03\x01\x00\x00")
        error = await connecting
    assert "it asks for protocol [3, 1, 0, 0]" in str(error)


async def test_a_peer_that_says_nothing_is_given_up() -> None:
    async with listening() as (address, _):
        with pytest.raises(LinkLost, match=r"no answer within 0\.05 s"):
            await Link.connect(address, timeout=0.05)


async def test_a_peer_that_hangs_up_is_a_lost_link() -> None:
    async with listening() as (address, peers), asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(_refusal(address))
        (await peers.get()).writer.close()
        assert "connection lost" in str(await connecting)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300])
async def test_a_host_that_is_none_is_a_lost_link(host: str) -> None:
    with pytest.raises(LinkLost):
        await Link.connect(Address(host=host, port=1, vhost="/", login="guest", password="guest"))


async def test_a_port_for_tls_is_a_definite_no_to_plain_amqp() -> None:
    async with listening() as (address, peers), asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(_error(address))
        (await peers.get()).writer.write(b"\x15\x03\x01\x00\x02\x02\x46")
        error = await connecting
    assert type(error) is LinkRefused
    assert str(error).endswith("it speaks TLS there; write amqps:// in BUS_URL")


async def test_nobody_listening_is_a_lost_link() -> None:
    async with listening() as (address, _):
        pass
    with pytest.raises(LinkLost, match=str(address.port)):
        await Link.connect(address)


async def _refusal(address: Address) -> LinkLost:
    with pytest.raises(LinkLost) as caught:
        await Link.connect(address, timeout=30)
    return caught.value


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (403, "ACCESS_REFUSED - Login was refused", LinkRefused),
        (530, "NOT_ALLOWED - vhost x not found", LinkRefused),
        (530, "NOT_ALLOWED - access to vhost 'x' refused for user 'y': connection limit (1) is reached", LinkLost),
        (320, "CONNECTION_FORCED - Node was put into maintenance mode", LinkLost),
        (541, "INTERNAL_ERROR - vhost 'x' is down", LinkLost),
    ],
)
async def test_only_a_definite_no_is_a_refusal(code: int, text: str, kind: type[Exception]) -> None:
    async with listening() as (address, peers), asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(_error(address))
        peer = await peers.get()
        await peer.reader.readexactly(8)
        peer.send(commands.Connection.Start(server_properties={}))
        await peer.expect(commands.Connection.StartOk)
        peer.send(commands.Connection.Close(code, text, 0, 0))
        error = await connecting
    assert type(error) is kind
    assert f"{code} {text}" in str(error)


async def _error(address: Address) -> Exception:
    try:
        await Link.connect(address)
    except (LinkLost, LinkRefused) as error:
        return error
    raise AssertionError("it connected")


# garbage after the handshake


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x50\x00",  # no end octet
        b"\x04\x00\x01\x00\x00\x00\x00\xce",  # no known kind
        b"\x03\x00\x01\x7f\xff\xff\xff",  # larger than agreed
        b"\x01\x00\x01\x00\x00\x00\x04\x00\x3c\x00\x3c\xce",  # a delivery without arguments
        b"\x01\x00\x01\x00\x00\x00\x04\x00\xff\x00\xff\xce",  # a method that does not exist
        b"\x01\x00\x01\x00\x00\x00\x00\xce",  # a method without a number
        wire.content(1, 0, b"", b"of no method", 4096),
        pamqp.frame.marshal(commands.Basic.Deliver("tag", 1, False, "", "q"), 1)
        + wire.content(1, 0, b"", b"", 4096)[:-1]
        + b"\x00",
    ],
)
async def test_a_garbled_frame_ends_the_link_and_tells_everyone_who_waits(garbage: bytes) -> None:
    async with connected() as (link, peer):
        channel = await peer.open_channel(link)
        channel.on_delivery = lambda received: wire.delivered(received.method) and None
        batch = channel.publish([parcel("1")])
        asking = asyncio.ensure_future(channel.rpc(commands.Basic.Qos(prefetch_count=1)))
        await asyncio.sleep(0)
        peer.writer.write(garbage + wire.content(1, 0, b"", b"", 4096))
        await link.closed.wait()
        assert isinstance(link.error, LinkLost)
        assert await batch.future == [Fate.UNKNOWN]
        with pytest.raises(LinkLost):
            await asking
        with pytest.raises(LinkLost):
            await link.writable()


async def test_a_body_longer_than_announced_ends_the_link() -> None:
    async with connected() as (link, peer):
        await peer.open_channel(link)
        peer.send(commands.Basic.Deliver("tag", 1, False, "", "q"), 1)
        content = wire.content(1, 0, b"", b"12345", 4096)
        peer.writer.write(content.replace((5).to_bytes(8), (4).to_bytes(8)))
        await link.closed.wait()
        assert "more of a message" in str(link.error)
