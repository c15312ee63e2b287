"""A broker that is played by hand: what a real one cannot be made to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame

from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import Address
from bus.transport.rabbitmq.channel import Channel, Parcel
from bus.transport.rabbitmq.link import Link
from bus.transport.rabbitmq.publisher import Publisher


@dataclass
class Peer:
    """The broker's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frame(self) -> bytes:
        """Return the next frame, heartbeats left out."""
        while True:
            head = await self.reader.readexactly(7)
            whole = head + await self.reader.readexactly(int.from_bytes(head[3:]) + 1)
            if head[0] != wire.BEAT:
                return whole

    async def command(self) -> tuple[int, Any]:
        """Return the next frame's channel and content."""
        _, channel, command = pamqp.frame.unmarshal(await self.frame())
        return channel, command

    async def expect(self, kind: type[Frame]) -> Any:
        """Return the next frame's content, which must be of that kind."""
        _, command = await self.command()
        assert isinstance(command, kind), command
        return command

    def send(self, command: Any, channel: int = 0) -> None:
        """Send a frame."""
        self.writer.write(pamqp.frame.marshal(command, channel))

    async def greet(self, *, frame_max: int, heartbeat: int, channel_max: int, capabilities: dict[str, Any]) -> None:
        """Play the handshake."""
        assert await self.reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
        self.send(commands.Connection.Start(server_properties={"capabilities": capabilities}))
        await self.expect(commands.Connection.StartOk)
        self.send(commands.Connection.Tune(channel_max, frame_max, heartbeat))
        await self.expect(commands.Connection.TuneOk)
        await self.expect(commands.Connection.Open)
        self.send(commands.Connection.OpenOk())

    async def open_channel(self, link: Link) -> Channel:
        """Open a channel of the link."""
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(link.channel())
            number, _ = await self.command()
            self.send(commands.Channel.OpenOk(), number)
        return opening.result()


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Address, asyncio.Queue[Peer]]]:
    """Listen for links."""
    peers: asyncio.Queue[Peer] = asyncio.Queue()
    came = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        peers.put_nowait(Peer(reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Address(host="127.0.0.1", port=port, vhost="/", login="guest", password="guest"), peers
    finally:
        server.close()
        for writer in came:
            writer.transport.abort()


@asynccontextmanager
async def connected(
    *, frame_max: int = 131_072, heartbeat: int = 60, channel_max: int = 2047, **capabilities: bool
) -> AsyncIterator[tuple[Link, Peer]]:
    """Connect a link to a peer that speaks AMQP."""
    async with listening() as (address, peers):
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(Link.connect(address))
            peer = await peers.get()
            await peer.greet(
                frame_max=frame_max, heartbeat=heartbeat, channel_max=channel_max, capabilities=dict(capabilities)
            )
        link = connecting.result()
        yield link, peer
        peer.writer.transport.abort()
        await link.closed.wait()


def parcel(id: str, key: str = "key", body: bytes = b"body", properties: bytes | None = None) -> Parcel:
    flags = 1 << 7 if properties is None else 0
    return Parcel(id, "exchange", key, flags, wire.short(id) if properties is None else properties, body)


def returned(id: str, key: str = "key", channel: int = 1) -> bytes:
    """What a broker sends when nobody wants a message."""
    method = pamqp.frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "exchange", key), channel)
    return method + wire.content(channel, 1 << 7 if id else 0, wire.short(id) if id else b"", b"body", 131_072)


class Linked:
    """Stands for the supervisor of links that are there one after the other."""

    trouble = ""

    def __init__(self, *links: Link) -> None:
        self._links = links
        self.hosts = len(links)

    async def link(self) -> Link:
        for link in self._links:
            if link.error is None:
                return link
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def publishing(timeout: float, *, whole: bool = False) -> AsyncIterator[tuple[Publisher, Peer, Link]]:
    async with connected() as (link, peer), asyncio.TaskGroup() as tasks:
        supervisor: Any = Linked(link)
        publisher = Publisher(supervisor, "events", timeout, whole=whole)
        keeping = tasks.create_task(publisher.keep())
        yield publisher, peer, link
        await publisher.aclose()
        keeping.cancel()


async def open_channel(peer: Peer) -> int:
    """Answer what a publisher asks before it publishes; return its channel."""
    number, command = await peer.command()
    assert isinstance(command, commands.Channel.Open)
    peer.send(commands.Channel.OpenOk(), number)
    await peer.expect(commands.Exchange.Declare)
    peer.send(commands.Exchange.DeclareOk(), number)
    for _ in range(2):
        closed, command = await peer.command()
        if isinstance(command, commands.Channel.Close):
            peer.send(commands.Channel.CloseOk(), closed)
        else:
            number = closed
            peer.send(commands.Channel.OpenOk(), number)
    await peer.expect(commands.Confirm.Select)
    peer.send(commands.Confirm.SelectOk(), number)
    return number


async def published(peer: Peer) -> int:
    """Read one message, and return the channel that it came by."""
    number, command = await peer.command()
    assert isinstance(command, commands.Basic.Publish)
    await peer.frame()
    await peer.frame()
    return number
