"""A TCP proxy in front of a broker that misbehaves on demand."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Forwards to `target` until it is told to drop, to swallow, to refuse, or to cut after so many bytes."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.connections = 0
        self._target = target
        self.delay = 0.0
        """Seconds that what comes from the broker is late."""
        self._refusing = False
        self._limits: deque[Limit] = deque()
        self._open: set[Limit] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flowing = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self.blackhole(up=False, down=False)

    def url(self, vhost: str) -> str:
        """Return the URL of a virtual host through the proxy."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def drop(self) -> None:
        """Reset every connection."""
        self._reset(set(self._writers))

    def _reset(self, writers: set[asyncio.StreamWriter]) -> None:
        for writer in writers:
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

    def cut_after(self, count: int, connections: int = 1, *, swallow: bool = False) -> None:
        """Cut each of so many new connections after `count` of its bytes, both directions counted; or go silent."""
        self._limits = deque(Limit(count, swallow) for _ in range(connections))

    def forget(self) -> None:
        """Swallow from now on what comes on a connection that is open, as a firewall does; serve new ones."""
        for limit in self._open:
            limit.left, limit.swallows = 0, True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listen meanwhile, on `port` if that is set."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.blackhole(up=False, down=False)
            self.drop()
            if self._serving:
                await asyncio.wait(self._serving, timeout=5)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if task := asyncio.current_task():
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        limit = self._limits.popleft() if self._limits else Limit(sys.maxsize)
        self._open.add(limit)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, far_writer, "up", limit, pair))
                tasks.create_task(self._pump(far_reader, writer, "down", limit, pair))
        finally:
            self._writers -= pair
            self._open.discard(limit)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: str,
        limit: Limit,
        pair: set[asyncio.StreamWriter],
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing[direction].wait()
                if direction == "down" and self.delay:
                    await asyncio.sleep(self.delay)
                if not limit.lets(len(data)):
                    if limit.swallows:
                        continue
                    writer.write(data[: limit.left])
                    self._reset(pair - {writer})
                    break  # a reset of this one, too, would take back what it was just given
                writer.write(data)
                await writer.drain()
        writer.close()


class Limit:
    """How many bytes of a connection pass."""

    def __init__(self, count: int, swallows: bool = False) -> None:
        self.left = count
        self.swallows = swallows

    def lets(self, size: int) -> bool:
        """Tell whether so many more may pass, and count them."""
        if size > self.left:
            return False
        self.left -= size
        return True
