"""One channel of a link: requests and replies, publishing with confirms, deliveries and acks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pamqp import commands
from pamqp.base import Frame

from ...errors import Fate
from . import wire
from .acks import Acks
from .doubts import Settled


if TYPE_CHECKING:
    from .link import Link


GOODBYE: Final = 2.0
"""Seconds that the broker has to answer when a channel or a link is closed."""


class LinkLost(ConnectionError):
    """The link is gone, or could not be had; another try may succeed."""


class ChannelClosed(ConnectionError):
    """The broker closed the channel, and said why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


@dataclass(slots=True, frozen=True)
class Parcel:
    """A message ready to publish: where to, what the broker must do, and its properties as bytes."""

    id: str
    exchange: str
    key: str
    flags: int
    properties: bytes
    body: bytes
    mandatory: bool = False


class Received:
    """A delivery as it came; read when it is taken, not when it arrives."""

    __slots__ = ("body", "channel", "header", "method")

    def __init__(self, channel: Channel, method: bytes, header: bytes, body: bytes) -> None:
        self.channel = channel
        self.method = method
        self.header = header
        self.body = body


class Batch:
    """The messages of one publish call: the future is done when the fate of each is known, or nobody will tell."""

    __slots__ = ("_left", "fates", "future")

    def __init__(self, size: int, future: asyncio.Future[list[Fate]]) -> None:
        self._left = size
        self.fates = [Fate.UNKNOWN] * size
        self.future = future

    def one(self, index: int, fate: Fate) -> None:
        """Note what the broker said of one message; a returned one stays unroutable whatever else is said."""
        if self.fates[index] is Fate.UNKNOWN:
            self.fates[index] = fate
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result(self.fates)

    def end(self) -> None:
        """Say what is known by now."""
        if not self.future.done():
            self.future.set_result(self.fates)


class Channel:
    """A channel that is open until `closed` is set. Publishing, acking and reading never wait here.

    The callbacks run while the link reads: they must be quick, and must not raise. It is `doubtful` once the broker
    cancelled its consumer: a queue that lives on has taken back what is acked by it from then on, maybe before, too.
    """

    def __init__(self, link: Link, number: int) -> None:
        self.closed = asyncio.Event()
        self.error: ConnectionError | None = None
        self.on_delivery: Callable[[Received], None] = lambda _: None
        self.on_cancelled: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self.acks = Acks()
        self.settled_last: deque[Settled] = deque(maxlen=0)
        self.doubtful = False
        self.delivered = 0
        self.number = number
        self.link = link
        self._replies: deque[asyncio.Future[Any]] = deque()
        self._sequence = 0
        self._oldest = 1
        self._pending: dict[int, tuple[Batch, int, Parcel]] = {}
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._method: bytes | None = None
        self._header = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self._future = asyncio.get_running_loop().create_future
        self._goodbye: asyncio.Future[bool] = self._future()

    @property
    def idle(self) -> bool:
        """Whether no publish waits for a confirm."""
        return all(batch.future.done() for batch, _, _ in self._pending.values())

    @property
    def oldest(self) -> int | None:
        """The number of the oldest publish that waits for its confirm."""
        return next(iter(self._pending), None)

    @property
    def settled(self) -> bool:
        """Whether everything that came by it is settled."""
        return len(self.acks) == self.delivered

    async def rpc(self, command: Frame) -> Any:
        """Send a request and return the reply; raises what closed the channel."""
        if self.error is not None:
            raise self.error
        self.link.send_command(command, self.number)
        reply: asyncio.Future[Any] = self._future()
        self._replies.append(reply)
        return await reply

    def publish(self, parcels: Sequence[Parcel]) -> Batch:
        """Write the messages and return their batch. A link that is lost meanwhile leaves them unknown.

        Raises Malformed, and writes none of them, where one does not fit into AMQP's frames.
        """
        batch = Batch(len(parcels), self._future())
        if self.error is not None or not parcels:
            batch.end()
            return batch
        frames = [self._frames(parcel) for parcel in parcels]
        sequence = self._sequence
        for index, parcel in enumerate(parcels):
            sequence += 1
            self._pending[sequence] = (batch, index, parcel)
        self._sequence = sequence
        self.link.send(frames[0] if len(frames) == 1 else b"".join(frames))
        return batch

    def settle(self, tag: int) -> None:
        """Ack a delivery; the frame goes out with this turn's others. Does nothing on a closed channel."""
        if self.error is None:
            self.acks.finished(tag)
            self.link.flush_acks(self)

    def release(self, tags: Iterable[int]) -> None:
        """Give deliveries back to their queue. Does nothing on a closed channel."""
        if self.error is None:
            for tag in tags:
                self.acks.given_back(tag)
                self.link.send(wire.nack(self.number, tag, requeue=True))

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter a delivery by itself. Does nothing on a closed channel."""
        if self.error is None:
            self.acks.given_back(tag)
            self.link.send(wire.nack(self.number, tag, requeue=False))

    def leave(self) -> None:
        """Close the channel without waiting; its number is free again when the broker has answered."""
        if self.error is None:
            self.link.flush()  # the broker reads no ack that comes after the close
            self.link.send_command(commands.Channel.Close(200, "", 0, 0), self.number)
            self._end(LinkLost("the channel was closed here"))

    async def aclose(self) -> bool:
        """Close the channel and wait for the broker's answer, `GOODBYE` at most.

        True means that it came: the broker has read every ack before it. What is unconfirmed by now stays unknown.
        """
        self.leave()
        await asyncio.wait((self._goodbye,), timeout=GOODBYE)
        return self._goodbye.done() and self._goodbye.result()

    def frame(self, kind: int, payload: bytes) -> None:
        """Take a frame of this channel."""
        if kind == wire.BODY:
            self._parts.append(payload)
            self._missing -= len(payload)
            if self._missing < 0:
                raise LinkLost("the broker sent more of a message than it had announced")
            if not self._missing:
                self._content()
        elif kind == wire.HEADER:
            self._header = payload
            self._missing = wire.U64.unpack_from(payload, 4)[0]
            if not self._missing:
                self._content()
        else:
            what = wire.U32.unpack_from(payload)[0]
            if what in (wire.DELIVER, wire.RETURN):
                self._method = payload
            elif what == wire.BASIC_ACK:
                tag, multiple = wire.TAG.unpack_from(payload, 4)
                self._confirmed(tag, Fate.STORED, multiple=bool(multiple & 1))
            elif what == wire.BASIC_NACK:
                tag, bits = wire.TAG.unpack_from(payload, 4)
                self._confirmed(tag, Fate.REFUSED, multiple=bool(bits & 1))
            else:
                self._command(self.link.command(payload, self.number))

    def end(self, error: ConnectionError) -> None:
        """Take the end of the channel: whoever waits is told, whatever is unconfirmed stays unknown."""
        self._end(error)
        self._answered(yes=False)

    def _end(self, error: ConnectionError) -> None:
        if self.error is not None:
            return
        self.error = error
        self.closed.set()
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(error)
                reply.exception()  # a waiter that was cancelled meanwhile must not be reported as forgotten
        for batch, _, _ in self._pending.values():
            batch.end()
        self._replies.clear()
        self._pending.clear()
        self.on_end()

    def _answered(self, *, yes: bool) -> None:
        if not self._goodbye.done():
            self._goodbye.set_result(yes)

    def _command(self, command: Any) -> None:
        match command:
            case commands.Channel.Close():
                self.link.send_command(commands.Channel.CloseOk(), self.number)
                if self.error is None:  # else our own close crossed this one, and is answered yet
                    self.link.forget(self)
                    self.end(ChannelClosed(command.reply_code or 0, command.reply_text or ""))
            case commands.Channel.CloseOk():
                self.link.forget(self)
                self._answered(yes=True)
            case commands.Channel.Flow():
                self.link.send_command(commands.Channel.FlowOk(command.active), self.number)
            case commands.Basic.Cancel():
                if self.link.answers_cancel and self.error is None:
                    self.link.send_command(commands.Basic.CancelOk(command.consumer_tag or ""), self.number)
                self.on_cancelled()
            case _ if self._replies:
                reply = self._replies.popleft()
                if not reply.done():
                    reply.set_result(command)

    def _content(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        method, self._method = self._method, None
        self._parts = []
        if method is None:
            raise LinkLost("the broker sent content that belongs to no method")
        if method[3] == 60:  # Basic.Deliver; the other is Basic.Return
            self.delivered += 1
            if self.error is None:
                self.on_delivery(Received(self, method, self._header, body))
        else:
            self._returned(method)

    def _confirmed(self, tag: int, fate: Fate, *, multiple: bool) -> None:
        pop = self._pending.pop
        for sequence in range(self._oldest, tag + 1) if multiple else (tag,):
            if (entry := pop(sequence, None)) is not None:
                entry[0].one(entry[1], fate)
        if multiple or tag == self._oldest:
            self._oldest = tag + 1

    def _returned(self, method: bytes) -> None:
        _, exchange, key = wire.returned(method)
        sent = [
            (batch, index, parcel)
            for batch, index, parcel in self._pending.values()
            if parcel.exchange == exchange and parcel.key == key and batch.fates[index] is Fate.UNKNOWN
        ]
        # rare, so the search is here and not on the way of every message; a message may come back without an id, and
        # a plugin of the broker may have added to its headers: then it was the oldest that was sent there
        raw = self._header[14:]
        id = _message_id(self._header)
        if sent:
            batch, index, _ = max(sent, key=lambda entry: (entry[2].properties == raw, entry[2].id == id))
            batch.fates[index] = Fate.UNROUTABLE

    def _frames(self, parcel: Parcel) -> bytes:
        route = (parcel.exchange, parcel.key, parcel.mandatory)
        if (method := self._methods.get(route)) is None:
            if len(self._methods) > 10_000:
                self._methods.clear()
            method = self._methods[route] = wire.publish_method(
                self.number, parcel.exchange, parcel.key, mandatory=parcel.mandatory
            )
        return method + wire.content(self.number, parcel.flags, parcel.properties, parcel.body, self.link.frame_max)


def _message_id(header: bytes) -> str | None:
    try:
        return wire.properties(header).get("message_id")
    except wire.Malformed:
        return None
