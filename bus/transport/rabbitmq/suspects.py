"""The marks of a service's suspects: a stream in which a run is noted before it begins, and again after it ended.

How often the broker handed a message out proves nothing, as deploys and lost connections raise that too. A run that
began and never ended does: whatever ran it is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from pamqp import commands

from ...errors import AccessRefused, BusUnavailable, PublishError, Unroutable
from ...logs import logger
from ...message import Ids
from . import copies, wire
from .channel import ChannelClosed, Parcel, Received
from .patience import patient
from .supervisor import Supervisor
from .topology import MARKS


SUSPECT: Final = 2
"""A message that came back so often without an outcome may be what kills workers."""
BEHIND: Final = 10
"""The same, for an ordered queue's messages behind the first: that may fail and stay first, while another kills."""
KEY: Final = "tidegate-suspect"
TOKEN: Final = "tidegate-token"
BEGUN: Final = "tidegate-begun"
PREFETCH: Final = 1_000
READ_WITHIN: Final = 10.0
"""Seconds for one try to read on to a mark; the next one goes on from there."""
END_WITHIN: Final = 2.0
"""Seconds for the note that a run ended: a worker that stops does not wait longer."""


class Suspects:
    """Appends marks to a service's stream, and reads it on to the last one that it appended.

    The marks enter by an exchange of the service's own: whoever may write to the default one may write to every queue.
    A user that may neither declare nor use the stream goes without, and is told once: a suspect is run unmarked then.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        stream: str,
        entrance: str,
        store: Callable[[Sequence[Parcel]], Awaitable[None]],
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        self._supervisor = supervisor
        self._stream = stream
        self._entrance = entrance
        self._store = store
        self._declare = declare
        self._make_token = Ids()
        self._begun: dict[str, set[str]] = {}
        self._next: int | str = "first"
        self._anew = False
        """Whether the stream may be another one of its name: its offsets begin again."""
        self._reading = asyncio.Lock()
        self._refused = False

    def token(self) -> str:
        """Return a new mark: one for each delivery, however often its run begins or has to be noted."""
        return self._make_token()

    async def begin(self, key: str, token: str) -> int:
        """Mark that a run of this message begins; return how many others of it have no end.

        Raises BusUnavailable or PublishRefused where that cannot be stored or read now; what was stored stands then,
        until it is ended.
        """
        if self._refused:
            return 0
        try:
            await self._append(key, token, begun=True)
            try:
                async with self._reading:
                    await self._read_to(key, token)
            except AccessRefused:
                await self.end(key, token)
                raise
        except AccessRefused as error:
            self._refused = True
            logger().warning("suspects run unmarked", stream=self._stream, error=str(error))
            return 0
        return len(self._begun.get(key, set()) - {token})

    async def end(self, key: str, token: str) -> None:
        """Mark that the run is over. Where that cannot be stored it is logged, and the run counts as one that died."""
        if self._refused:
            return
        try:
            async with asyncio.timeout(END_WITHIN):
                await self._append(key, token, begun=False)
        except (TimeoutError, PublishError, AccessRefused) as error:
            logger().warning("the end of a suspect's run is not noted", stream=self._stream, error=str(error))

    async def _append(self, key: str, token: str, *, begun: bool) -> None:
        headers = {KEY: key, TOKEN: token, BEGUN: begun}
        flags, properties = copies.encode({"headers": headers, "delivery_mode": 2})
        mark = Parcel(token, self._entrance, MARKS, flags, properties, b"", mandatory=True)
        try:
            await self._store([mark])
        except Unroutable:
            # declared when it is first needed: most services never have a suspect
            await self._declare()
            self._anew = True
            await self._store([mark])

    async def _read_to(self, key: str, token: str) -> None:
        """Read on until a mark of this token was seen, by whoever read it."""
        if token in self._begun.get(key, ()):
            return
        if self._anew:
            self._anew, self._next, self._begun = False, "first", {}
        began = self._next
        try:
            async with patient(READ_WITHIN):
                link = await self._supervisor.link()
                channel = await link.channel()
                inbox: asyncio.Queue[Received | None] = asyncio.Queue()
                channel.on_delivery = inbox.put_nowait
                channel.on_end = channel.on_cancelled = lambda: inbox.put_nowait(None)
                try:
                    await channel.rpc(commands.Basic.Qos(prefetch_count=PREFETCH))
                    offset: dict[str, Any] = {"x-stream-offset": self._next}
                    await channel.rpc(commands.Basic.Consume(queue=self._stream, arguments=offset))
                    while (received := await inbox.get()) is not None:
                        channel.settle(wire.delivered(received.method)[0])
                        if self._fold(wire.properties(received.header).get("headers", {})) == token:
                            return
                    self._anew = self._anew or channel.error is None
                    why = channel.error or "the stream was deleted"
                    raise BusUnavailable(f"{self._stream}: its marks could not be read on: {why}", {})
                finally:
                    channel.on_delivery, channel.on_end, channel.on_cancelled = (
                        lambda _: None,
                        lambda: None,
                        lambda: None,
                    )
                    channel.leave()
        except ChannelClosed as error:
            if error.code == 403:
                raise AccessRefused(f"{self._stream}: {error.text}") from error
            raise BusUnavailable(f"{self._stream}: {error}", {}) from error
        except (ConnectionError, TimeoutError) as error:
            # an entry that is stored and does not come stands before where it is looked for, in a stream that is new;
            # where others came instead, there were too many for once
            self._anew = self._anew or (isinstance(error, TimeoutError) and self._next == began)
            raise BusUnavailable(f"{self._stream}: its marks could not be read: {error!r}", {}) from error

    def _fold(self, headers: dict[str, Any]) -> str:
        """Take the next mark, and return its token; one that was read before changes nothing."""
        offset, key, token = headers["x-stream-offset"], str(headers.get(KEY)), str(headers.get(TOKEN))
        if isinstance(self._next, int) and offset < self._next:
            return token
        self._next = offset + 1
        open_runs = self._begun.setdefault(key, set())
        if headers.get(BEGUN):
            open_runs.add(token)
        else:
            open_runs.discard(token)
            if not open_runs:
                del self._begun[key]
        return token
