"""A TCP proxy in front of a broker that misbehaves on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Forwards to `target` until it is told to drop, to swallow, to refuse, or to cut after so many bytes."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self.forwarded = 0
        self._target = target
        self.delay = 0.0
        """Seconds that what comes from the broker is late."""
        self._refusing = False
        self._cut_after: int | None = None
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self.blackhole(up=False, down=False)

    def url(self, vhost: str) -> str:
        """Return the URL of a virtual host through the proxy."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def drop(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def blackhole(self, *, up: bool, down: bool) -> None:
        """Swallow what goes to the broker, what comes from it, or both; nobody is told."""
        for direction, on in (("up", up), ("down", down)):
            self._flowing[direction].clear() if on else self._flowing[direction].set()

    def refuse(self, on: bool) -> None:
        """Close new connections at once."""
        self._refusing = on

    def cut_after(self, count: int | None) -> None:
        """Reset a connection once so many bytes were forwarded, both directions counted, from now on."""
        self.forwarded, self._cut_after = 0, count

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listen meanwhile."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.blackhole(up=False, down=False)
            self.drop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, far_writer, "up"))
                tasks.create_task(self._pump(far_reader, writer, "down"))
        finally:
            self._writers -= {writer, far_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing[direction].wait()
                if direction == "down" and self.delay:
                    await asyncio.sleep(self.delay)
                if self._cut_after is not None and self.forwarded + len(data) > self._cut_after:
                    writer.write(data[: max(self._cut_after - self.forwarded, 0)])
                    self._cut_after = None
                    self.drop()
                    return
                self.forwarded += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()
