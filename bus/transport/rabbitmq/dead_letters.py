"""The dead letters of a service: a stream of letters and marks, only ever appended to.

The list of open letters is the fold of both. A stream because looking changes nothing: a quorum queue counts each look
as a delivery, and in the end drops what was looked at too often. Reading goes over a link of our own, so that a replay
carries the original's headers byte for byte.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ... import clock
from ...errors import BusUnavailable, Unroutable
from ...message import HOPS, MADE_ID, ORIGINAL_PREFIX, ROUTING_KEY, Ids, Message
from ...outcome import Letter
from ...packing import base64, edited, pack, unpack
from . import copies, envelope, records, wire
from .address import Address
from .channel import Parcel
from .compaction import compact
from .desk import TRIES, Desk, operator
from .fold import AT, DISCARDED, EDITED, FAILED_AGAIN, KEY, LETTER, OPERATOR, REPLAYED, TOKEN, TURN, Fold, Row
from .records import ENTRY_KEY, Entry
from .stream import Gone, Streams
from .topology import Names


CLOUDEVENTS_CONTENT: Final = "application/cloudevents"


class RabbitMQDeadLetters:
    """The dead letters of every service, over one link that is opened when it is first needed."""

    def __init__(self, addresses: Sequence[Address], names: Names, timeout: float) -> None:
        self._names = names
        self._streams = Streams(addresses, timeout)
        self._make_token = Ids()
        self._desks: dict[str, Desk] = {}

    async def aclose(self) -> None:
        """Close the link."""
        await self._streams.aclose()

    def _desk(self, service: str) -> Desk:
        if service not in self._desks:
            self._desks[service] = Desk(self._streams, self._names, service)
        return self._desks[service]

    async def browse(self, service: str, *, closed: bool = False) -> AsyncIterator[Letter]:
        """Yield the letters as of now, oldest first; a service that never ran has none."""
        desk, done = self._desk(service), set[bytes]()
        async with self._streams.told():
            for _ in range(TRIES):
                async with desk.lock:
                    fold = await desk.look()
                rows = [row for row in fold.rows.values() if row.key not in done and (closed or fold.is_open(row))]
                try:
                    async for row, entry in desk.entries(rows):
                        done.add(row.key)
                        desk.last = (row.key, entry)
                        yield _letter(fold, row, entry)
                except Gone:
                    continue
                return
            raise BusUnavailable(f"the dead letters of {service} were compacted {TRIES} times meanwhile", {})

    async def replay(self, letter: Letter, *, to: str | None = None) -> None:
        """Send the letter to its handler's queue, or to another's, as attempt 1, and mark it as replayed."""
        queue = self._names.of(to or f"{letter.service}.{letter.handler}")

        def copy(row: Row, entry: Entry, token: str) -> Parcel:
            raw, body = entry.original
            flags, properties = copies.replay(raw, _told(letter, entry), token)
            return Parcel(letter.message.id, "", queue, flags, properties, body, mandatory=True)

        await self._act(letter, REPLAYED, copy, to or "")

    async def edit(self, letter: Letter, body: bytes) -> Message:
        """Send a message with another body to the letter's handler, and mark the letter as edited."""
        subscription = f"{letter.service}.{letter.handler}"
        message = edited(letter, body)

        def copy(row: Row, entry: Entry, token: str) -> Parcel:
            raw, _ = entry.original
            flags, properties = copies.replay(raw, _told(letter, entry), token)
            headers = wire.properties(bytes(12) + flags.to_bytes(2, "big") + properties).get("headers", {})
            known = (*envelope.ATTRIBUTES, HOPS, MADE_ID)
            others = {name: value for name, value in headers.items() if name not in known}
            plain = replace(message, headers={})
            return Parcel(
                message.id,
                "",
                self._names.of(subscription),
                envelope.FLAGS,
                envelope.encode(plain, others),
                body,
                mandatory=True,
            )

        place = records.digest(f"{letter.handler}\n{message.id}")
        await self._act(letter, EDITED, copy, message.id, place)
        return message

    async def discard(self, letter: Letter) -> None:
        """Mark the letter as discarded."""
        await self._act(letter, DISCARDED)

    async def _act(self, letter: Letter, kind: str, copy: Any = None, to: str = "", to_place: bytes = b"") -> None:
        async with self._streams.told():
            try:
                await self._desk(letter.service).act(letter, kind, copy, to, to_place)
            except Unroutable as error:
                raise Unroutable(f"{error}; is the handler renamed or removed?", {}) from error

    async def packed(self, letter: Letter) -> Mapping[str, object]:
        """Return the letter as values of JSON, the entry's own bytes among them."""
        desk = self._desk(letter.service)
        async with self._streams.told(), desk.lock:
            row = await desk.known(letter)
            entry = await desk.entry(row)
        told: dict[str, object] = {
            "header": b64encode(entry.received.header).decode(),
            "key": entry.first_key,
            "identity": row.key.hex(),
        }
        if entry.headers.get(copies.WRAPPED):
            told["body_base64"] = b64encode(entry.received.body).decode()
        return {**pack(letter), "entry": told}

    async def restore(self, service: str, packed: Mapping[str, object]) -> bool:
        """Put a packed letter into the stream, unless it is there and open."""
        letter = unpack(packed)
        told = packed.get("entry")
        identity = records.identity(letter.message, letter.failure, {})[0]
        header, body, key = b"", letter.message.body, f"{service}.{letter.handler}"
        if isinstance(told, dict):
            header, key = base64(told, "header"), str(told.get("key"))
            identity = bytes.fromhex(str(told.get("identity")))
            body = base64(told, "body_base64") if "body_base64" in told else body
        else:
            properties = envelope.encode(replace(letter.message, headers=_movable(letter.message.headers)))
            header = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + properties
        desk = self._desk(service)
        async with self._streams.told(), desk.lock:
            fold = await desk.look()
            row = fold.rows.get(identity)
            if row is not None and fold.is_open(row):
                return False
            token = self._make_token()
            added = {KEY: identity.hex(), TURN: fold.next_turn(identity), ENTRY_KEY: key, TOKEN: token}
            added |= {OPERATOR: operator(), AT: clock.now().isoformat(), FAILED_AGAIN: _whole(packed)}
            added |= {LETTER: row.id} if row else {}
            await desk.put(
                letter.message.id, token, *copies.carried(header, body, letter.message, letter.failure, added)
            )
        return True

    async def compact(self, service: str) -> tuple[int, int]:
        """Carry the open letters into a new generation of the stream, and delete the older ones."""
        desk = self._desk(service)
        async with self._streams.told(), desk.lock:
            return await compact(desk, self._streams, self._names)


def _letter(fold: Fold, row: Row, entry: Entry) -> Letter:
    message, failure = records.read(entry, fold.service, fold.prefix)
    return Letter(
        id=row.id,
        service=fold.service,
        handler=failure.handler,
        message=message,
        failure=failure,
        failed_again=fold.failed_again(row),
        closed=not fold.is_open(row),
        history=fold.history(row),
    )


def _told(letter: Letter, entry: Entry) -> Mapping[str, Any]:
    """Return the headers that tell of the letter, and its type in place of the key that it was published with.

    Without either, a worker would take the key of the replay for the type, which is the name of a queue.
    """
    keyed = isinstance(entry.headers.get(ROUTING_KEY), str)
    return entry.told if keyed else {**entry.told, ROUTING_KEY: letter.message.type}


def _movable(headers: Mapping[str, str]) -> dict[str, str]:
    unsafe = {name for name in headers if name.lower().startswith("x-") or name.lower() in envelope.MOVED}
    return {ORIGINAL_PREFIX + name if name in unsafe else name: value for name, value in headers.items()}


def _whole(packed: Mapping[str, object]) -> int:
    value = packed.get("failed_again")
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
