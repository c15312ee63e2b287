"""The delay cascade as one process sees it: it is looked for, declared where it is missing, and led to single queues.

Looking needs no right to configure, so a process that has none can delay as soon as one that has it did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn, TypeAlias

from aio_pika.exceptions import AMQPError
from aio_pika.exceptions import ChannelClosed as DeclareRefused
from pamqp import commands

from ...errors import AccessRefused, BusUnavailable, PublishRefused, Unroutable
from . import delay
from .address import Address
from .channel import Channel, ChannelClosed
from .link import Link, LinkRefused
from .supervisor import Backoff, Supervisor
from .topology import REMEDY, Names


Ways: TypeAlias = Mapping[str, str | None]
"""The queues that are sent to after a delay, and the dead letters of each, for what comes when that queue is gone."""


class DelayRefused(PublishRefused, AccessRefused):
    """What a delay needs is not there, and this user may not declare it."""


class Cascade:
    """Seen whole once in the life of a link, and again after `forget`."""

    def __init__(self, addresses: Sequence[Address], names: Names, supervisor: Supervisor, timeout: float) -> None:
        self._addresses = addresses
        self._names = names
        self._supervisor = supervisor
        self._timeout = timeout
        self._seen: Link | None = None
        self._levels = 0
        self._channel: Channel | None = None
        self._turn = asyncio.Lock()

    def forget(self) -> None:
        """Look again before the next delay: something was deleted."""
        self._seen, self._levels = None, 0

    async def ready(self, ways: Ways, deadline: float | None = None) -> bool:
        """Have the cascade and the ways from it to single queues; return whether anything had to be declared.

        Waits for the broker until `deadline`, by default for the publish timeout. Raises BusUnavailable; Unroutable
        for a queue that is not there; PublishRefused where something is missing that this user may not declare.
        """
        backoff, why = Backoff(), ""
        until = asyncio.get_running_loop().time() + self._timeout if deadline is None else deadline
        try:
            async with asyncio.timeout_at(until), self._turn:
                while True:
                    try:
                        return await self._made_ready(ways)
                    except (LinkRefused, ConnectionError, AMQPError) as error:  # this link was let in before
                        why = str(error)
                    await asyncio.sleep(backoff())
        except TimeoutError:
            why = why or self._supervisor.trouble
            because = f": {why}" if why else ""
            raise BusUnavailable(f"no delay cascade within {self._timeout:g} s{because}", {}) from None

    async def _made_ready(self, ways: Ways) -> bool:
        link = await self._supervisor.link()
        missing = self._seen is not link and not await self._whole(link)
        if missing:
            await self._declare()
            self._levels = 0
        self._seen = link
        for queue, dead in ways.items():
            await self._lead_to(link, queue, dead)
        return missing

    async def _whole(self, link: Link) -> bool:
        """Tell whether every part is there, as far as this user may see."""
        for command in delay.parts(self._names):
            try:
                await (await self._open(link)).rpc(command)
            except ChannelClosed as error:
                if error.code == 403:
                    return True  # 4.3 lets nobody look who may not configure; publishing will tell
                if error.code == 404:
                    return False
                raise
        return True

    async def _declare(self) -> None:
        try:
            # a short publish timeout ends this on the way: whoever comes next goes on from there
            async with aclosing(delay.declare(self._addresses, self._names, self._levels)) as levels:
                async for self._levels in levels:
                    pass
        except DeclareRefused as error:
            raise DelayRefused(
                f"a delay needs the delay cascade, which is missing and cannot be declared: {error}; {REMEDY} "
                f"'{self._names.of('delay')}.*'",
                {},
            ) from error

    async def _lead_to(self, link: Link, queue: str, dead: str | None) -> None:
        """Bind a queue to the cascade's end; each time, as it may have been deleted and made again since."""
        exchange = self._names.of(delay.RETURN)
        try:
            channel = await self._open(link)
            await channel.rpc(commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=queue))
            if dead is not None:
                lost = self._names.of(delay.LOST)
                await channel.rpc(commands.Exchange.Bind(destination=dead, source=lost, routing_key=queue))
        except ChannelClosed as error:
            self._refused(queue, exchange, error)

    def _refused(self, queue: str, exchange: str, error: ChannelClosed) -> NoReturn:
        if error.code == 404 and f"queue '{queue}'" in error.text:
            raise Unroutable(f"there is no queue {queue!r} to send to after a delay", {}) from error
        if error.code == 403:
            raise DelayRefused(
                f"queue {queue!r} gets nothing after a delay unless it is bound to {exchange!r}, and this user may not "
                f"do that ({error.text}); it needs the rights to write to the queue and to read the exchange",
                {},
            ) from error
        self.forget()
        raise error

    async def _open(self, link: Link) -> Channel:
        if self._channel is None or self._channel.error is not None:
            self._channel = await link.channel()
        return self._channel
