"""One data connection to RabbitMQ: frames, handshake, heartbeat, flow; writes coalesced once per loop turn."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any, Final, Self, cast

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame
from pamqp.header import ProtocolHeader

from ...errors import AccessRefused, ConfigurationError
from ...forks import in_child, let_go
from . import wire
from .address import Address
from .channel import GOODBYE, Channel, ChannelClosed, LinkLost
from .names import at_any_address


FRAME_MAX: Final = 131_072
KINDS: Final = frozenset((wire.METHOD, wire.HEADER, wire.BODY, wire.BEAT))
HIGH_WATER: Final = 1 << 20
"""Bytes of one turn after which publishers wait for the next."""
CAPABILITIES: Final = {
    "publisher_confirms": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


TLS_ALERT: Final = b"\x15\x03"
"""How the answer of a port for TLS begins, when it is spoken to in plain AMQP."""


class LinkRefused(AccessRefused):
    """A definite no: wrong login, no such virtual host, or a certificate or a file that does not fit."""


class Link(asyncio.Protocol):
    """A connection that is open until `closed` is set; `error` tells why. Made by `connect`."""

    def __init__(self, address: Address) -> None:
        self.closed = asyncio.Event()
        self.error: ConnectionError | None = None
        self.frame_max = FRAME_MAX
        self.blocked = ""
        self.answers_cancel = False
        self.largest: int | None = None
        """Bytes of body that the broker takes at most, where it has closed a channel over more."""
        self.version = ""
        self.address = address
        self._secret = address.secret()
        self._heartbeat = address.heartbeat
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        # whoever connects may have left before it came to anything
        self._opened.add_done_callback(lambda opened: opened.cancelled() or opened.exception())
        self._buffer = b""
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flushing = False
        self._acking: dict[Channel, None] = {}
        self._channels: dict[int, Channel] = {}
        self._channel_max = 2047
        self._paused = False
        self._writers: deque[asyncio.Future[None]] = deque()
        self._heard = self._said = self._loop.time()
        self._doubted = False
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(cls, address: Address, *, timeout: float = 10) -> Self:
        """Connect and log in within `timeout` seconds. Raises LinkRefused for a definite no, LinkLost otherwise."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                link, context = cls(address), address.context()
                name = None if context is None else address.host

                async def connected(host: str) -> asyncio.Transport:
                    made = await loop.create_connection(
                        lambda: link, host, address.port, ssl=context, server_hostname=name
                    )
                    return made[0]

                transport = await at_any_address(address.host, address.port, connected, within=timeout)
                try:
                    await link._opened
                except BaseException:
                    transport.abort()
                    raise
                return link
        except ConfigurationError as error:  # a file was well when this began
            raise LinkRefused(str(error)) from error
        except TimeoutError as error:
            raise LinkLost(f"{address}: no answer within {timeout:g} s") from error
        except LinkLost:
            raise
        except (OSError, UnicodeError) as error:  # names that are none raise the latter
            if (wrong := address.verdict(error)) is not None:
                raise LinkRefused(wrong) from error
            raise LinkLost(f"{address}: {error}") from error

    async def channel(self, *, confirm: bool = False) -> Channel:
        """Open a channel, with publisher confirms if asked for. Raises what closed the link or the channel."""
        if self.error is not None:
            raise self.error
        number = next((n for n in range(1, self._channel_max + 1) if n not in self._channels), None)
        if number is None:
            raise ChannelClosed(504, f"all {self._channel_max} channels that the broker allows are open")
        channel = self._channels[number] = Channel(self, number)
        try:
            await channel.rpc(commands.Channel.Open())
            if confirm:
                await channel.rpc(commands.Confirm.Select())
        except asyncio.CancelledError:
            channel.leave()
            raise
        return channel

    def forget(self, channel: Channel) -> None:
        """Free the channel's number, once its closing is acknowledged."""
        self._channels.pop(channel.number, None)
        self._acking.pop(channel, None)

    @property
    def open_for_writing(self) -> bool:
        """Whether `writable` would return at once."""
        return self.error is None and not (self._paused or self.blocked or self._out_bytes > HIGH_WATER)

    async def writable(self) -> None:
        """Wait while the socket or the broker takes nothing more. Raises what ended the link."""
        while self.error is None and not self.open_for_writing:
            turn = self._loop.create_future()
            self._writers.append(turn)
            await turn
        if self.error is not None:
            raise self.error

    def send(self, data: bytes) -> None:
        """Write with this turn's other frames."""
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def send_command(self, command: Frame, channel: int) -> None:
        """Write a control frame."""
        self.send(pamqp.frame.marshal(command, channel))

    def flush_acks(self, channel: Channel) -> None:
        """Write the channel's acks at the end of this turn."""
        self._acking[channel] = None
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what this turn has gathered."""
        self._flushing = False
        if self.error is not None or self._transport is None:
            return
        for channel in self._acking:
            self._out += [wire.ack(channel.number, tag, multiple=multiple) for tag, multiple in channel.acks.take()]
        self._acking.clear()
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0
            self._said = self._loop.time()
        self._let_write()

    def give_up(self, why: str) -> None:
        """End the link without a goodbye: its peer does not answer."""
        self._fail(LinkLost(f"{self.address}: {why}"), abort=True)

    async def aclose(self) -> None:
        """Flush, say goodbye, and close; the broker's answer is waited for `GOODBYE` at most."""
        if self.error is None:
            self.flush()  # the broker reads no ack that comes after the goodbye
            self.send_command(commands.Connection.Close(200, "", 0, 0), 0)
            self.flush()
            try:
                async with asyncio.timeout(GOODBYE):
                    await self.closed.wait()
            except TimeoutError:
                pass  # the peer is gone, or takes nothing more
            finally:
                self._fail(LinkLost(f"{self.address}: closed here without the broker's answer"), abort=True)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        in_child(self, Link._leave_to_parent)
        self._give_up_unacknowledged(after=self._heartbeat * 2)
        self._transport.write(ProtocolHeader().marshal())

    def pause_writing(self) -> None:
        """Hold publishers back until the socket has room."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let publishers write again."""
        self._paused = False
        self._let_write()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the socket is gone."""
        if exc is not None and (wrong := self.address.verdict(exc)) is not None:
            self._refuse(wrong)
        self._fail(LinkLost(f"{self.address}: connection lost" + (f" ({exc})" if exc else "")))

    def data_received(self, data: bytes) -> None:
        """Take the frames in what came, and keep what is not whole yet."""
        self._heard, self._doubted = self._loop.time(), False
        if self._buffer:
            data = self._buffer + data
        if data.startswith(TLS_ALERT) and not self._opened.done():
            self._refuse(f"{self.address}: it speaks TLS there; write amqps:// in BUS_URL")
        try:
            at = self._frames(data)
        except LinkLost as error:
            self._fail(error, abort=True)
        except Exception as error:
            self._fail(LinkLost(f"{self.address}: a garbled frame: {error!r}"), abort=True)
        else:
            self._buffer = data[at:] if at < len(data) else b""

    def _frames(self, data: bytes) -> int:
        at, end = 0, len(data)
        unpack, channels = wire.HEAD.unpack_from, self._channels
        while end - at >= 7:
            kind, number, size = unpack(data, at)
            if kind not in KINDS or size > self.frame_max:
                raise self._stranger(data[at:])
            stop = at + 7 + size
            if stop >= end:
                return at
            if data[stop] != wire.END:
                raise self._stranger(data[at:])
            if number:
                if (channel := channels.get(number)) is not None:
                    channel.frame(kind, data[at + 7 : stop])
            elif kind == wire.METHOD:
                self._connection(self.command(data[at + 7 : stop], 0))
            if self.error is not None:
                return end
            at = stop + 1
        if at < end and data[at] not in KINDS:
            raise self._stranger(data[at:])
        return at

    def command(self, payload: bytes, channel: int) -> Any:
        """Return a control frame's command."""
        frame = wire.HEAD.pack(wire.METHOD, channel, len(payload)) + payload + wire.END_OCTET
        return pamqp.frame.unmarshal(frame)[2]

    def _stranger(self, data: bytes) -> LinkLost:
        if self._opened.done():
            return LinkLost(f"{self.address}: a garbled frame, or one over {self.frame_max} bytes: {data[:16]!r}")
        if data[:4] == b"AMQP" and len(data) >= 8:
            return LinkLost(f"{self.address} does not speak AMQP 0-9-1: it asks for protocol {[*data[4:8]]}")
        return LinkLost(f"{self.address} does not speak AMQP 0-9-1: it began with {data[:16]!r}")

    def _connection(self, command: Any) -> None:
        match command:
            case commands.Connection.Start():
                address = self.address
                capabilities: Any = (command.server_properties or {}).get("capabilities") or {}
                # RabbitMQ keeps the tag of a consumer that it cancelled until it is answered; older ones close for it
                self.answers_cancel = bool(capabilities.get("accept_consumer_cancel_ok"))
                self.version = str((command.server_properties or {}).get("version", ""))
                properties: Any = {
                    "capabilities": CAPABILITIES,
                    "product": "Tidegate",
                    "connection_name": address.name,
                }
                login = f"\0{address.login}\0{self._secret}"
                self.send_command(commands.Connection.StartOk(properties, "PLAIN", login, "en_US"), 0)
            case commands.Connection.Tune():
                self.frame_max = min(command.frame_max or FRAME_MAX, FRAME_MAX)
                self._channel_max = command.channel_max or self._channel_max
                offered = command.heartbeat or self._heartbeat
                self._heartbeat = min(self._heartbeat, offered)
                beat = max(1, round(self._heartbeat))
                self.send_command(commands.Connection.TuneOk(self._channel_max, self.frame_max, beat), 0)
                self.send_command(commands.Connection.Open(self.address.vhost), 0)
            case commands.Connection.OpenOk():
                self._beat()
                if not self._opened.done():
                    self._opened.set_result(None)
            case commands.Connection.Close():
                self.send_command(commands.Connection.CloseOk(), 0)
                self.flush()
                self._closed_by_broker(command.reply_code or 0, command.reply_text or "")
            case commands.Connection.CloseOk():
                self._fail(LinkLost("closed"), abort=True)  # all is said; a goodbye of TLS would outlive the loop
            case commands.Connection.Blocked():
                self.blocked = (
                    f"{self.address}: the broker takes no publishes now: {command.reason or 'it says not why'}"
                )
                self._give_up_unacknowledged(after=0)  # the broker reads nothing now, and is alive
            case commands.Connection.Unblocked():
                self.blocked = ""
                self._give_up_unacknowledged(after=self._heartbeat * 2)
                self._let_write()

    def _give_up_unacknowledged(self, after: float) -> None:
        """Have the kernel end the link when nothing that was sent is taken for so many seconds; 0 for never."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(after * 1000))

    def _leave_to_parent(self) -> None:
        """Let go of the socket in a forked child, which would keep the link open after the parent's end."""
        if self._transport is not None and not self._transport.is_closing():
            let_go(self._transport.get_extra_info("socket").fileno())

    def _closed_by_broker(self, code: int, text: str) -> None:
        # a limit of connections is a no that may turn into a yes
        if code in {403, 530} and "connection limit" not in text:
            password = "password" if self.address.password_file is None else "BUS_PASSWORD_FILE"
            where = f"check the user, {password} and virtual host of BUS_URL"
            self._refuse(f"{self.address}: {code} {text.rstrip('.')}; {where}")
        self._fail(LinkLost(f"{self.address}: {code} {text}"))

    def _refuse(self, why: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(LinkRefused(why))

    def _renew(self) -> None:
        """Tell the broker a password that has changed: where it is a token, the one that is known expires."""
        try:
            secret = self.address.secret()
        except ConfigurationError:
            return  # it is being written, or it is told when it is needed
        if secret != self._secret:
            self._secret = secret
            self.send_command(commands.Connection.UpdateSecret(secret, "renewed"), 0)

    def _beat(self) -> None:
        now, half = self._loop.time(), self._heartbeat / 2
        silent = now - self._heard > self._heartbeat * 2
        if silent and self._doubted:
            self._fail(LinkLost(f"{self.address}: no heartbeat for {now - self._heard:.0f} s"), abort=True)
            return
        # a loop that was busy has not read yet what may be there: look once more before the verdict
        self._doubted = silent
        self._renew()
        if now - self._said >= half * 0.9:
            self.send(wire.HEARTBEAT)
        self._timer = self._loop.call_later(min(half, 1) if silent else half, self._beat)

    def _let_write(self) -> None:
        if not (self._paused or self.blocked):
            while self._writers:
                turn = self._writers.popleft()
                if not turn.done():
                    turn.set_result(None)

    def _fail(self, error: ConnectionError, *, abort: bool = False) -> None:
        if self.error is not None:
            return
        self.error = error
        self.closed.set()
        if self._timer is not None:
            self._timer.cancel()
        if not self._opened.done():
            self._opened.set_exception(error)
        for channel in list(self._channels.values()):
            channel.end(error)
        self._channels.clear()
        self._paused, self.blocked = False, ""
        self._let_write()
        if self._transport is not None:
            self._transport.abort() if abort else self._transport.close()
