"""Publishing: every message confirmed, through outages, within a timeout."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from pamqp import commands

from ...errors import AccessRefused, BusUnavailable, Fate, PublishRefused, Unroutable
from .channel import Batch, Channel, ChannelClosed, Parcel
from .supervisor import Backoff, Supervisor
from .wire import Malformed


class WriteRefused(PublishRefused, AccessRefused):
    """The broker refused to store, and waiting will not help: the user may not write there."""


class Publisher:
    """Publishes parcels on one confirm channel of a supervised link; many tasks may publish at once.

    A message whose fate is unknown, because the link was lost before its confirm, is published again with the same id
    on the next link, until the timeout.
    """

    def __init__(self, supervisor: Supervisor, exchange: str, timeout: float) -> None:
        self._supervisor = supervisor
        self._exchange = exchange
        self._timeout = timeout
        self._channel: Channel | None = None
        self._retired: list[Channel] = []
        self._opening = asyncio.Lock()
        self._deadlines: deque[tuple[float, Batch]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def publish(self, parcels: Sequence[Parcel], deadline: float | None = None) -> None:
        """Return when every parcel is stored. Raises Unroutable, PublishRefused or BusUnavailable with all fates.

        Tries until `deadline`, in the loop's time; by default for the publish timeout.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._timeout
        channel = self._channel
        if channel is not None and channel.error is None and channel.link.open_for_writing:
            told = await self._send(channel, parcels, deadline).future
            if told.count(Fate.STORED) == len(told):
                return
            await self._insist(parcels, deadline, channel, told)
        else:
            await self._insist(parcels, deadline)

    async def _insist(
        self, parcels: Sequence[Parcel], deadline: float, channel: Channel | None = None, told: list[Fate] | None = None
    ) -> None:
        """Publish what is unknown again and again, until every fate is known or the timeout is over."""
        loop = asyncio.get_running_loop()
        fates: dict[str, Fate] = {}
        why, backoff, allowed = "", Backoff(), True
        left = parcels
        while left:
            if channel is None or told is None:
                try:
                    channel = await self._writable(deadline)
                except TimeoutError:
                    why = why or self._supervisor.trouble
                    break
                except ConnectionError as error:
                    why = str(error)
                    await asyncio.sleep(backoff())
                    continue
                told = await self._send(channel, left, deadline).future
            if isinstance(channel.error, ChannelClosed):
                why, allowed = channel.error.text, channel.error.code != 403
                told = [_blamed(parcel, fate, channel.error) for parcel, fate in zip(left, told, strict=True)]
            elif Fate.REFUSED in told:
                self._retire(channel)
            fates |= {parcel.id: fate for parcel, fate in zip(left, told, strict=True)}
            left = [parcel for parcel, fate in zip(left, told, strict=True) if fate is Fate.UNKNOWN]
            if left and loop.time() >= deadline:
                break
            channel = told = None
            if left:
                await asyncio.sleep(min(backoff(), max(deadline - loop.time(), 0)))
        self._raise_for(fates, left, why, allowed=allowed)

    def _retire(self, channel: Channel) -> None:
        """Use another channel from now on: a quorum queue that refused a channel once goes on to refuse it."""
        if self._channel is channel:
            self._channel = None
            self._retired.append(channel)

    def _send(self, channel: Channel, parcels: Sequence[Parcel], deadline: float) -> Batch:
        try:
            batch = channel.publish(parcels)
        except Malformed as error:
            fates = {parcel.id: Fate.REFUSED for parcel in parcels}
            raise PublishRefused(f"the headers do not fit into a frame: {error}", fates) from error
        while self._deadlines and self._deadlines[0][1].future.done():
            self._deadlines.popleft()
        self._deadlines.append((deadline, batch))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._sweep)
        return batch

    def _sweep(self) -> None:
        """End the batches that are overdue. One timer for all: a timeout for each message costs too much."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1].future.done()):
            self._deadlines.popleft()[1].end()
        if self._deadlines:
            self._timer = loop.call_at(self._deadlines[0][0], self._sweep)

    async def _writable(self, deadline: float) -> Channel:
        """Return the channel, ready to take more. Raises TimeoutError at the deadline."""
        channel = self._channel
        if channel is None or channel.error is not None or not channel.link.open_for_writing:
            async with asyncio.timeout_at(deadline):
                channel = await self._open()
                await channel.link.writable()
        return channel

    async def _open(self) -> Channel:
        async with self._opening:
            if self._channel is not None and self._channel.error is None:
                return self._channel
            link = await self._supervisor.link()
            for retired in [retired for retired in self._retired if retired.idle]:
                self._retired.remove(retired)
                await retired.aclose()
            scratch = await link.channel()
            try:
                await scratch.rpc(
                    commands.Exchange.Declare(exchange=self._exchange, exchange_type="topic", durable=True)
                )
            except ChannelClosed:
                # no right to configure, or declared otherwise: what is there may do, and publishing tells
                pass
            else:
                await scratch.aclose()
            self._channel = await link.channel(confirm=True)
            return self._channel

    def _raise_for(self, fates: dict[str, Fate], left: Sequence[Parcel], why: str, *, allowed: bool) -> None:
        if left:
            fates |= {parcel.id: Fate.UNKNOWN for parcel in left}
            because = f": {why}" if why else ""
            raise BusUnavailable(
                f"not confirmed within {self._timeout:g} s{because}; publish again with id= to be safe", fates
            )
        told = set(fates.values())
        if Fate.UNROUTABLE in told:
            raise Unroutable("no queue wants the message", fates)
        if Fate.REFUSED in told:
            if not allowed:
                raise WriteRefused(f"{why}; give the user of BUS_URL the permission to write there", fates)
            raise PublishRefused(f"the broker refused to store the message{': ' + why if why else ''}", fates)

    async def aclose(self) -> None:
        """Stop the timer. Whoever still publishes gets its answer from the link."""
        if self._timer is not None:
            self._timer.cancel()


def _blamed(parcel: Parcel, fate: Fate, error: ChannelClosed) -> Fate:
    """Return refused for a parcel whose exchange the broker names as it closes the channel; the others go again."""
    return Fate.REFUSED if fate is Fate.UNKNOWN and f"'{parcel.exchange}'" in error.text else fate
