"""Answers: replies on their way to whoever requested. Best effort: a requester that is gone is nobody's failure."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections import deque
from contextlib import suppress
from functools import lru_cache
from typing import Final

from ...errors import AccessRefused, Fate
from ...logs import logger
from ...message import Message
from . import envelope
from .channel import GOODBYE, Batch, Channel, ChannelClosed, Parcel
from .link import Link
from .patience import patient
from .publisher import ASK_AFTER, OPEN_WITHIN
from .supervisor import Backoff, Supervisor
from .wire import Malformed


OF_BROKER: Final = "amq.gen-"
"""What a queue's name begins with that the broker made up: only who waits there knows it."""
DIRECT: Final = re.compile(re.escape(envelope.DIRECT_REPLIES) + r"\.([A-Za-z0-9+/]{32,120}={0,2})\.[A-Za-z0-9+/]{22}==")
"""The address of a channel that waits: a process of the broker, and a key of 16 bytes, each in base64."""
PROCESS: Final = re.compile(rb"\x83Xv\0(.)([a-z]{1,20}@[0-9]{1,9}).{12}", re.DOTALL)
"""A process in Erlang's external format, on a node that is told by its number."""
MOST_WAITING: Final = 1_000
"""Replies that wait for a connection at most; the oldest are dropped, their requesters most likely gone."""
AFTER_A_REFUSAL: Final = 5.0
"""Seconds without replies after the broker closed their channel, which it does when the user may not write there."""
NODE_GONE: Final = 60.0
"""Seconds without replies to a node whose address ended the connection, as 3.10 does over one that is down."""
INTERNAL_ERROR: Final = "541"


class Answers:
    """Sends replies on a link of their own, which nobody else loses when the broker ends it over an address.

    What was in doubt then goes again, one by one, so that only the one that it was about is dropped. `keep` runs for
    as long as anyone answers.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._channel: Channel | None = None
        self._waiting: deque[Parcel] = deque(maxlen=MOST_WAITING)
        self._doubtful: deque[Parcel] = deque(maxlen=MOST_WAITING)
        self._wanted = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._gone: dict[str, float] = {}
        self._told: set[str] = set()

    def send(self, address: str, reply: Message) -> None:
        """Send a reply, or keep it until there is a channel. Never waits, never raises."""
        if (node := node_of(address)) is None:
            self._tell("address", f"{address[:60]!r} is no address that a broker made for replies")
            return
        if self._gone and self._gone.get(node, 0) > asyncio.get_running_loop().time():
            return
        parcel = Parcel(reply.id, "", address, envelope.FLAGS, envelope.encode(reply), reply.body)
        channel = self._channel
        if channel is not None and channel.error is None and channel.link.open_for_writing and not self._waiting:
            self._put(channel, parcel)
        else:
            self._waiting.append(parcel)
            self._sent.clear()
            self._wanted.set()

    async def keep(self) -> None:
        """Connect, and open a channel whenever one is wanted; ends by being cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervisor.keep(), name="answer link")
            tasks.create_task(self._keep_open(), name="answer channel")

    async def _keep_open(self) -> None:
        backoff = Backoff()
        while True:
            await self._wanted.wait()
            try:
                channel = await self._opened(await self._supervisor.link())
            except (ConnectionError, TimeoutError, AccessRefused):
                await asyncio.sleep(backoff())
                continue
            backoff.reset()
            if not await self._sent_alone(channel):
                continue
            self._channel = channel
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_waiting(channel), name="waiting answers")
                await self._watch(channel)
                sending.cancel()
            if isinstance(channel.error, ChannelClosed):
                why = f"{channel.error}; the user of BUS_URL needs the permission to write to amq.default"
                self._tell("permission", why)
                await asyncio.sleep(AFTER_A_REFUSAL)

    async def _opened(self, link: Link) -> Channel:
        try:
            async with patient(OPEN_WITHIN):
                await link.writable()
                return await link.channel(confirm=True)
        except TimeoutError:
            _give_up(link)
            raise

    async def _send_waiting(self, channel: Channel) -> None:
        """Send what waits whenever the link takes it; ends with the channel, or by being cancelled."""
        while channel.error is None:
            while self._waiting and channel.link.open_for_writing:
                self._put(channel, self._waiting.popleft())
            if self._waiting:
                with suppress(ConnectionError):
                    await channel.link.writable()
            else:
                # what waits when the channel ends wants another one
                self._wanted.clear()
                self._sent.set()
                await self._wanted.wait()

    async def _watch(self, channel: Channel) -> None:
        """Return when the channel is closed; a link that confirms nothing for long is asked whether it is there."""
        while channel.error is None:
            oldest = channel.oldest
            with suppress(TimeoutError):
                async with asyncio.timeout(ASK_AFTER):
                    await channel.closed.wait()
            if oldest is not None and channel.oldest == oldest:
                with suppress(ConnectionError, TimeoutError):
                    (await self._opened(channel.link)).leave()

    async def aclose(self) -> None:
        """Send what waits for the connection, `GOODBYE` at most: the first reply of a worker that stops is one."""
        try:
            async with asyncio.timeout(GOODBYE):
                await self._sent.wait()
        except TimeoutError:
            pass  # it is best effort

    async def _sent_alone(self, channel: Channel) -> bool:
        """Send what was in doubt when the last channel ended, one by one; tell whether the channel outlived it."""
        while self._doubtful:
            parcel = self._doubtful.popleft()
            if (batch := self._published(channel, parcel)) is not None:
                try:
                    async with patient(OPEN_WITHIN):
                        await asyncio.wait((batch.future,))
                except TimeoutError:
                    _give_up(channel.link)
            if channel.error is not None:
                if INTERNAL_ERROR in str(channel.error):
                    now = asyncio.get_running_loop().time()
                    self._gone = {node: until for node, until in self._gone.items() if until > now}
                    self._gone[node_of(parcel.key) or ""] = now + NODE_GONE
                return False
        return True

    def _put(self, channel: Channel, parcel: Parcel) -> None:
        def told(confirmed: asyncio.Future[list[Fate]]) -> None:
            if confirmed.result() == [Fate.UNKNOWN] and not isinstance(channel.error, ChannelClosed):
                self._doubtful.append(parcel)
                self._wanted.set()

        if (batch := self._published(channel, parcel)) is not None:
            batch.future.add_done_callback(told)

    def _published(self, channel: Channel, parcel: Parcel) -> Batch | None:
        try:
            return channel.publish([parcel])
        except Malformed as error:
            self._tell("size", str(error))
            return None

    def _tell(self, kind: str, why: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            logger().warning("a reply was not sent; others like it are not told of", error=why)


def _give_up(link: Link) -> None:
    if not link.blocked:
        link.give_up(f"no answer within {OPEN_WITHIN:g} s")


@lru_cache(maxsize=1024)
def node_of(address: str) -> str | None:
    """Return the node of an address that a broker made for somebody who waits for replies; None for any other.

    Whoever may publish may write any queue's name into a message: it must not make us write there. And most of what is
    nearly an address makes RabbitMQ 3.10 end the connection. A queue's node is not told, and empty.
    """
    if (found := DIRECT.fullmatch(address)) is None:
        return "" if address.startswith(OF_BROKER) else None
    try:
        process = PROCESS.fullmatch(b64decode(found[1], validate=True))
    except ValueError:
        return None
    return process[2].decode() if process is not None and process[1][0] == len(process[2]) else None
