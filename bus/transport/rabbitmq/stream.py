"""Reading streams and storing into them, over one link that is opened when it is needed and kept.

A stream tells no length. That its end was reached is known all the same: an ack lets the broker send what there is,
and a request on the same channel is answered after that. Only where nothing was ever heard does this not do, because
the first entries come by another way; then an entry of our own is appended, and heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from pamqp import commands

from ...errors import AccessRefused, BusUnavailable, Fate, PublishRefused, Unroutable
from . import copies, wire
from .address import Address
from .channel import Channel, ChannelClosed, LinkLost, Parcel, Received
from .largest import TooLarge, fits, limit_in
from .link import Link, LinkRefused
from .publisher import WriteRefused
from .records import Entry


PREFETCH: Final = 1_000
QUIET: Final = 0.3
"""Seconds without a first entry after which one is appended, so that there is one to hear."""
NO_REPLICA: Final = 406


class Gone(Exception):
    """The stream is not there, or not any more."""


class Streams:
    """One link to the broker, opened when it is first needed and again after it was lost."""

    def __init__(self, addresses: Sequence[Address], timeout: float) -> None:
        self._addresses = list(addresses)
        self.timeout = timeout
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._storing = asyncio.Lock()

    @property
    def addresses(self) -> Sequence[Address]:
        """Where the broker is, the host that served last first."""
        return self._addresses

    async def aclose(self) -> None:
        """Close the link."""
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    @asynccontextmanager
    async def told(self) -> AsyncIterator[None]:
        """Tell what happens to the connection meanwhile in words that an operator understands."""
        try:
            yield
        except ChannelClosed as error:
            if error.code == 403:
                raise AccessRefused(f"{error.text}; it needs the right to read and to write") from error
            if error.code == NO_REPLICA:
                # not every node of a cluster has the stream: another host may
                self._addresses.append(self._addresses.pop(0))
                await self.aclose()
            raise BusUnavailable(f"the broker refused: {error}", {}) from error
        except Gone as error:
            raise BusUnavailable(f"{error} was compacted meanwhile: try again", {}) from error
        except ConnectionError as error:
            raise BusUnavailable(f"the connection was lost: {error}", {}) from error
        except TimeoutError as error:
            raise BusUnavailable(f"the broker did not answer within {self.timeout:g} s", {}) from error

    async def link(self) -> Link:
        """Return the link. Raises AccessRefused for a definite no, BusUnavailable where no host answers."""
        async with self._opening:
            if self._link is not None and self._link.error is None:
                return self._link
            reasons = []
            for address in self._addresses:
                try:
                    self._link = await Link.connect(address)
                except LinkRefused as error:
                    raise AccessRefused(str(error)) from error
                except LinkLost as error:
                    reasons.append(str(error))
                else:
                    return self._link
            raise BusUnavailable("no broker answers: " + "; ".join(reasons), {})

    async def ask(self, command: Any) -> bool:
        """Send a request on a channel of its own; return False where the broker says that there is no such thing."""
        link = await self.link()
        async with asyncio.timeout(self.timeout):
            channel = await link.channel()
            try:
                await channel.rpc(command)
            except ChannelClosed as error:
                if error.code == 404:
                    return False
                raise
            finally:
                channel.leave()
            return True

    async def store(self, parcels: Sequence[Parcel]) -> None:
        """Store, confirmed. Raises Unroutable where a queue is not there, PublishRefused and BusUnavailable."""
        link, channel = await self.link(), None
        try:
            async with asyncio.timeout(self.timeout), self._storing:
                channel, self._channel = self._channel, None
                if channel is None or channel.error is not None:
                    channel = await link.channel(confirm=True)
                await link.writable()
                fates = await channel.publish(parcels).future
                if fates.count(Fate.STORED) == len(fates):
                    # only then: entrance.py tells what streams make of what is sent behind what still waits
                    self._channel = channel
        except wire.Malformed as error:
            refused = {parcel.id: Fate.REFUSED for parcel in parcels}
            raise PublishRefused(f"its headers do not fit into a frame: {error}", refused) from error
        except TimeoutError:
            fates = [Fate.UNKNOWN] * len(parcels)
        finally:
            if channel is not None and channel is not self._channel:
                channel.leave()
        told = {parcel.id: fate for parcel, fate in zip(parcels, fates, strict=True) if fate is not Fate.STORED}
        closed = channel.error if channel is not None and isinstance(channel.error, ChannelClosed) else None
        if closed is not None and (limit := limit_in(closed.text)) is not None and not fits(parcels, limit):
            told |= {parcel.id: Fate.REFUSED for parcel in parcels if not fits([parcel], limit)}
            raise TooLarge(max(len(parcel.body) for parcel in parcels), limit, told)
        if closed is not None and closed.code == 403:
            raise WriteRefused(closed.text, told)
        queues = ", ".join(dict.fromkeys(repr(parcel.key) for parcel in parcels))
        if Fate.UNROUTABLE in fates:
            raise Unroutable(f"there is no queue {queues}", told)
        if Fate.REFUSED in fates:
            raise PublishRefused(f"the broker refused to store into {queues}", told)
        if Fate.UNKNOWN in fates:
            raise BusUnavailable(f"no confirm for {queues} within {self.timeout:g} s", told)

    async def read(self, stream: str, generation: int, offset: int, prefetch: int = PREFETCH) -> Reader:
        """Begin to read a stream; `offset` is that of an entry, or 0. Raises Gone where there is no such stream."""
        link = await self.link()
        async with asyncio.timeout(self.timeout):
            channel = await link.channel()
            reader = Reader(self, channel, stream, generation, offset, prefetch)
            try:
                await channel.rpc(commands.Basic.Qos(prefetch_count=prefetch))
                argument: Any = {"x-stream-offset": offset or "first"}
                await channel.rpc(commands.Basic.Consume(queue=stream, arguments=argument))
            except ChannelClosed as error:
                if error.code == 404:
                    raise Gone(stream) from error
                raise
            except asyncio.CancelledError:
                reader.close()
                raise
            return reader


class Reader:
    """Reads one stream on, from an entry that is there or from the beginning."""

    def __init__(
        self, streams: Streams, channel: Channel, stream: str, generation: int, offset: int, prefetch: int
    ) -> None:
        self.stream = stream
        self.generation = generation
        self._streams = streams
        self._channel = channel
        self._offset = offset
        self._prefetch = prefetch
        self._inbox: list[Received] = []
        self._heard = False
        self._gone = False
        self._news = asyncio.Event()
        channel.on_delivery = self._deliver
        channel.on_cancelled = self._cancel
        channel.on_end = self._news.set

    @property
    def alive(self) -> bool:
        """Whether there may be more to read."""
        return not self._gone and self._channel.error is None

    def close(self) -> None:
        """Read no more."""
        channel = self._channel
        channel.on_delivery, channel.on_cancelled, channel.on_end = lambda _: None, lambda: None, lambda: None
        channel.leave()

    async def more(self) -> list[Entry]:
        """Return the next entries; none means that there is nothing more as of now. Raises Gone."""
        async with asyncio.timeout(self._streams.timeout):
            while True:
                if not self._inbox:
                    self._check()
                    # the broker answers after it has sent what the acks before this let through
                    self._channel.link.flush()
                    await self._channel.rpc(commands.Basic.Qos(prefetch_count=self._prefetch))
                if not self._inbox and not self._heard:
                    await self._first()
                if not self._inbox:
                    return []
                if entries := self._taken():
                    return entries

    async def next(self) -> list[Entry]:
        """Wait for the next entries, which are to come. Raises Gone."""
        async with asyncio.timeout(self._streams.timeout):
            while True:
                await self._arrival()
                if entries := self._taken():
                    return entries

    async def _first(self) -> None:
        try:
            async with asyncio.timeout(QUIET):
                await self._arrival()
        except TimeoutError:
            try:
                await self._streams.store([mark(self.stream, LOOK)])
            except Unroutable as error:
                raise Gone(self.stream) from error
            await self._arrival()

    async def _arrival(self) -> None:
        while not self._inbox:
            self._check()
            self._news.clear()
            await self._news.wait()

    def _check(self) -> None:
        if self._gone:
            raise Gone(self.stream)
        if self._channel.error is not None:
            raise LinkLost(f"while reading {self.stream}: {self._channel.error}")

    def _taken(self) -> list[Entry]:
        taken, self._inbox = self._inbox, []
        entries = []
        for received in taken:
            tag, _, exchange, key = wire.delivered(received.method)
            self._channel.settle(tag)
            headers = wire.properties(received.header).get("headers", {})
            # a stream is read from the start of a chunk, so what comes first may be older than asked for
            offset = wire.first(received.header, b"x-stream-offset")
            if offset >= self._offset:
                entry = Entry(self.generation, offset, headers, received, key, direct=not exchange)
                entries.append(entry)
        if taken:
            # sent now, so that the broker reads on while these are looked at
            self._channel.link.flush()
        return entries

    def _deliver(self, received: Received) -> None:
        self._heard = True
        self._inbox.append(received)
        self._news.set()

    def _cancel(self) -> None:
        self._gone = True
        self._news.set()


LOOK: Final = {"tidegate-letter-mark": "looked"}


def mark(stream: str, headers: dict[str, Any]) -> Parcel:
    """Return a mark to put into a stream."""
    flags, properties = copies.encode({"headers": headers, "delivery_mode": 2})
    return Parcel(str(headers.get("tidegate-letter-token", "")), "", stream, flags, properties, b"", mandatory=True)
