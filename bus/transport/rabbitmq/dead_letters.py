"""The dead letters of a service: a stream of letters and marks, only ever appended to.

The list of open letters is the fold of both. A stream because looking changes nothing: a quorum queue counts each look
as a delivery, and in the end drops what was looked at too often. Reading goes over a link of our own, so that a replay
carries the original's headers byte for byte.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from pamqp import commands

from ... import clock
from ...errors import AccessRefused, BusUnavailable, Fate, PublishRefused, Unroutable
from ...message import ATTEMPT, FIRST_FAILED_AT, MADE_ID, ROUTING_KEY, Ids
from ...outcome import Failure, Letter
from . import copies, envelope, wire
from .address import Address
from .channel import Channel, ChannelClosed, LinkLost, Parcel, Received
from .link import Link, LinkRefused
from .topology import Names


GENERATION: Final = 0
MARK: Final = "tidegate-mark"
LETTER: Final = "tidegate-letter"
OPERATOR: Final = "tidegate-operator"
AT: Final = "tidegate-at"
TOKEN: Final = "tidegate-token"
CLAIM, RELEASED, REPLAYED, DISCARDED = "claim", "released", "replayed", "discarded"
CLAIM_LASTS: Final = timedelta(minutes=5)
PREFETCH: Final = 1_000
ONE: Final = 20
"""Prefetch where one entry is wanted: a stream is read from the start of a chunk."""
QUIET: Final = 0.3
"""Seconds without an entry after which the last chunk of a stream counts as read, once a listing."""


@dataclass(slots=True)
class Entry:
    """One entry of the stream."""

    offset: int
    properties: dict[str, Any]
    headers: dict[str, Any]
    received: Received
    exchange: str
    key: str

    @property
    def is_mark(self) -> bool:
        """Whether it is a mark: those are sent to the stream alone, and what dies comes by its exchange."""
        return MARK in self.headers and not self.exchange

    @property
    def told_by_worker(self) -> bool:
        """Whether a worker wrote it; of what the broker dead-letters by itself, headers like ours are a stranger's."""
        return not any(name.startswith("x-first-death-") for name in self.headers)


@dataclass(slots=True)
class Fold:
    """The open letters of a service after every entry before `next`."""

    service: str
    prefix: str
    next: int = 0
    open: dict[str, Letter] = field(default_factory=dict)
    claims: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    _seen: dict[tuple[str, str, datetime, int], str] = field(default_factory=dict)
    _replayed: dict[tuple[str, str], int] = field(default_factory=dict)
    _latest: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Take the next entry; one that was taken before changes nothing."""
        if entry.offset < self.next:
            return
        self.next = entry.offset + 1
        if entry.is_mark:
            self._mark(entry)
            return
        letter = self._letter(entry)
        # strangers use an id more than once, and the broker tells no time of its own
        copy = (letter.handler, letter.message.id, letter.failure.last_failed_at, hash(entry.received.body))
        if self._seen.setdefault(copy, letter.id) == letter.id:
            place = (letter.handler, letter.message.id)
            self.open[letter.id] = replace(letter, failed_again=self._replayed.get(place, 0))
            self._latest[place] = letter.id

    def _mark(self, entry: Entry) -> None:
        kind, id = entry.headers[MARK], str(entry.headers.get(LETTER))
        token, at = str(entry.headers.get(TOKEN)), copies.moment(entry.headers.get(AT), clock.now())
        if kind == CLAIM:
            holder = self.claims.get(id)
            if holder is None or at - holder[1] > CLAIM_LASTS:
                self.claims[id] = (token, at)
        elif kind == RELEASED:
            self.claims.pop(id, None)
        elif (letter := self.open.pop(id, None)) is not None and kind == REPLAYED:
            place = (letter.handler, letter.message.id)
            times = self._replayed[place] = self._replayed.get(place, 0) + 1
            # it may have failed again before this mark was written
            if (again := self.open.get(self._latest[place])) is not None:
                self.open[again.id] = replace(again, failed_again=times)

    def _letter(self, entry: Entry) -> Letter:
        raw, body = _original(entry)
        key = entry.key if not isinstance(told := entry.headers.get(ROUTING_KEY), str) else told
        message = envelope.decode(raw, body, key, ours=False).message
        if message.id_made_up and isinstance(made := entry.headers.get(MADE_ID), str):
            message = replace(message, id=made)
        failure = _failure(entry, self.service, self.prefix, message.time)
        return Letter(
            id=f"{GENERATION}-{entry.offset}",
            service=self.service,
            handler=failure.handler,
            message=message,
            failure=failure,
        )


class RabbitMQDeadLetters:
    """Browses, replays and discards; every call opens a link of its own and closes it.

    What a listing came to is kept, so that acting on each of its letters reads on from there: read from the letter on,
    a thousand letters would cost a million entries.
    """

    def __init__(self, addresses: Sequence[Address], names: Names, timeout: float) -> None:
        self._addresses = addresses
        self._names = names
        self._timeout = timeout
        self._make_token = Ids()
        self._folds: dict[str, Fold] = {}

    async def browse(self, service: str) -> AsyncIterator[Letter]:
        """Yield the open letters as of now, oldest first; a service that never ran has none."""
        fold = self._fold(service)
        async with self._link() as link:
            last = await self._last(link, service)
            if last is None:
                return
            async for entry in self._read(link, service, "first"):
                fold.add(entry)
                if entry.offset >= last:
                    break
        self._folds[service] = fold
        for letter in list(fold.open.values()):
            yield letter

    async def replay(self, letter: Letter) -> None:
        """Send the letter back to its handler's queue as attempt 1, confirmed, and mark it as replayed."""
        async with self._claimed(letter) as (channel, entry):
            raw, body = _original(entry)
            flags, properties = copies.replay(raw, entry.headers if entry.told_by_worker else {})
            queue = self._names.of(f"{letter.service}.{letter.handler}")
            await self._store(channel, Parcel(letter.message.id, "", queue, flags, properties, body, mandatory=True))
            await self._append(channel, letter, REPLAYED, "")

    async def discard(self, letter: Letter) -> None:
        """Mark the letter as discarded."""
        async with self._claimed(letter) as (channel, _):
            await self._append(channel, letter, DISCARDED, "")

    def _fold(self, service: str, next: int = 0) -> Fold:
        return Fold(service, self._names.of(""), next)

    @asynccontextmanager
    async def _claimed(self, letter: Letter) -> AsyncIterator[tuple[Channel, Entry]]:
        """Claim the letter; yield a channel and its entry. Raises LookupError if it is closed or another's."""
        token = self._make_token()
        async with self._link() as link:
            channel = await link.channel(confirm=True)
            await self._append(channel, letter, CLAIM, token)
            offset = int(letter.id.partition("-")[2])
            fold = self._folds.get(letter.service) or self._fold(letter.service, offset)
            async for entry in self._read(link, letter.service, fold.next):
                fold.add(entry)
                if entry.headers.get(TOKEN) == token:
                    break
            if letter.id not in fold.open:
                raise LookupError(f"dead letter {letter.id} of {letter.service} is not open any more")
            if fold.claims[letter.id][0] != token:
                raise LookupError(f"dead letter {letter.id} of {letter.service} is being handled by somebody else")
            try:
                yield channel, await self._entry(link, letter.service, offset)
            except Exception:
                await self._append(channel, letter, RELEASED, token)
                raise

    async def _append(self, channel: Channel, letter: Letter, mark: str, token: str) -> None:
        headers = {
            MARK: mark,
            LETTER: letter.id,
            OPERATOR: getpass.getuser(),
            AT: clock.now().isoformat(),
            TOKEN: token,
        }
        flags, properties = copies.encode({"headers": headers, "delivery_mode": 2})
        stream = self._names.dead(letter.service)
        await self._store(channel, Parcel(letter.id, "", stream, flags, properties, b"", mandatory=True))

    async def _store(self, channel: Channel, parcel: Parcel) -> None:
        try:
            batch = channel.publish([parcel])
        except wire.Malformed as error:
            raise PublishRefused(f"its headers do not fit into a frame: {error}", {parcel.id: Fate.REFUSED}) from error
        try:
            async with asyncio.timeout(self._timeout):
                fate = (await batch.future)[0]
        except TimeoutError:
            fate = Fate.UNKNOWN
        fates = {parcel.id: fate}
        if fate is Fate.UNROUTABLE:
            raise Unroutable(f"there is no queue {parcel.key!r}; is the handler renamed or removed?", fates)
        if fate is Fate.REFUSED:
            raise PublishRefused(f"the broker refused to store into {parcel.key!r}", fates)
        if fate is Fate.UNKNOWN:
            raise BusUnavailable(f"no confirm for {parcel.key!r} within {self._timeout:g} s", fates)

    async def _last(self, link: Link, service: str) -> int | None:
        """Return the offset of the last entry, None where there is none."""
        channel = await link.channel()
        try:
            declared = await channel.rpc(commands.Queue.Declare(queue=self._names.dead(service), passive=True))
        except ChannelClosed as error:
            if error.code == 404:
                return None
            raise
        await channel.aclose()
        last, reading = None, self._read(link, service, "last")
        wait = self._timeout if declared.message_count else QUIET
        try:
            while True:
                async with asyncio.timeout(wait):
                    last = (await anext(reading)).offset
                wait = QUIET
        except TimeoutError:
            return last
        finally:
            await reading.aclose()

    async def _entry(self, link: Link, service: str, offset: int) -> Entry:
        reading = self._read(link, service, offset, ONE)
        try:
            return await anext(reading)
        finally:
            await reading.aclose()

    async def _read(
        self, link: Link, service: str, offset: str | int, prefetch: int = PREFETCH
    ) -> AsyncGenerator[Entry, None]:
        channel = await link.channel()
        inbox: asyncio.Queue[Received | None] = asyncio.Queue()
        channel.on_delivery = inbox.put_nowait
        channel.on_end = lambda: inbox.put_nowait(None)
        try:
            await channel.rpc(commands.Basic.Qos(prefetch_count=prefetch))
            await channel.rpc(
                commands.Basic.Consume(queue=self._names.dead(service), arguments={"x-stream-offset": offset})
            )
            while (received := await inbox.get()) is not None:
                tag, _, exchange, key = wire.delivered(received.method)
                channel.settle(tag)
                properties = wire.properties(received.header)
                headers = properties.get("headers", {})
                # a stream is read from the start of a chunk, so what comes first may be older than asked for
                if not isinstance(offset, int) or headers["x-stream-offset"] >= offset:
                    yield Entry(headers["x-stream-offset"], properties, headers, received, exchange, key)
            raise BusUnavailable(f"the connection was lost while reading: {channel.error}", {})
        finally:
            channel.on_end = lambda: None
            await channel.aclose()

    @asynccontextmanager
    async def _link(self) -> AsyncIterator[Link]:
        reasons = []
        for address in self._addresses:
            try:
                link = await Link.connect(address)
            except LinkRefused as error:
                raise AccessRefused(str(error)) from error
            except LinkLost as error:
                reasons.append(str(error))
                continue
            try:
                yield link
            except ConnectionError as error:
                if isinstance(error, ChannelClosed) and error.code == 403:
                    raise AccessRefused(f"{error.text}; it needs the right to read and to write") from error
                raise BusUnavailable(f"the connection was lost: {error}", {}) from error
            finally:
                await link.aclose()
            return
        raise BusUnavailable("no broker answers: " + "; ".join(reasons), {})


def _original(entry: Entry) -> tuple[bytes, bytes]:
    """Return the content header and the body of what died."""
    received = entry.received
    if not entry.told_by_worker:
        return received.header, received.body
    return copies.unwrapped(entry.headers, received.header, received.body)


def _failure(entry: Entry, service: str, prefix: str, at: datetime) -> Failure:
    """Return the record that the handler's worker left, or what can be told where the broker gave up by itself."""
    headers = entry.headers if entry.told_by_worker else {}
    record = {
        name.removeprefix(copies.RECORD).replace("-", "_"): str(value)
        for name, value in headers.items()
        if name.startswith(copies.RECORD)
    } or _told_by_broker(entry)
    place = entry.key.removeprefix(prefix).rpartition(".")[2]
    # what came by the exchange of dead letters has its handler's key, and a stranger's record may name another
    handler = place if entry.exchange else record.get("handler") or place
    reason: Any = record.get("reason", "broker")
    return Failure(
        service=service,
        handler=handler,
        reason=reason,
        error_type=record.get("error_type", ""),
        error=record.get("error", ""),
        traceback=record.get("traceback", ""),
        attempts=_count(record.get("attempts", "")),
        first_failed_at=copies.moment(record.get("first_failed_at"), at),
        last_failed_at=copies.moment(record.get("last_failed_at"), at),
        worker=record.get("worker", ""),
    )


def _count(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _told_by_broker(entry: Entry) -> dict[str, str]:
    """Return the record of a letter that no worker wrote; a stream keeps little of what the broker knew."""
    why = entry.headers.get("x-first-death-reason")
    # what died in the handler's own queue has that queue's name as its key; a retry begins with its milliseconds
    if not entry.key.partition(".")[0].isdecimal():
        error = f"the broker dead-lettered it by itself, in queue {entry.key!r}: {why}"
        return {"reason": "expired" if why == "expired" else "broker", "error": error}
    attempt = entry.headers.get(ATTEMPT)
    return {
        "error": "a retry found no queue to return to: is the handler renamed or removed?",
        "attempts": str(attempt - 1) if isinstance(attempt, int) else "",
        "first_failed_at": str(entry.headers.get(FIRST_FAILED_AT)),
    }
