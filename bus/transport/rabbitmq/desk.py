"""One service's dead letters at the broker: what they come to as of now, and acting on one of them.

They are in one stream, or, while a compaction is under way or was cut off, in two: the older generation and the newer.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from pamqp import commands

from ... import clock
from ...errors import BusUnavailable, PublishRefused, Unroutable
from ...message import Ids
from ...outcome import Letter
from .channel import LinkLost, Parcel
from .fold import CLAIM, CUT, INTO, MARK, RELEASED, SEALED, TOKEN, Fold, Noted, Row
from .records import Entry
from .stream import Gone, Reader, Streams, mark
from .topology import Names


ONE: Final = 20
"""Prefetch where one entry is wanted: a stream is read from the start of a chunk."""
TRIES: Final = 8
"""How often a generation may go away while it is read."""
SEAL: Final = {MARK: SEALED}
HEARD_OUT: Final = 30.0
"""Seconds that whoever takes a letter over waits for the mark of who had it; less where nothing is appended at all."""


def operator() -> str:
    """Return who acts: the login and the host; a container may know no name for its user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


class Desk:
    """Folds the streams of one service, and keeps what they came to, so that a next look reads on from there."""

    def __init__(self, streams: Streams, names: Names, service: str) -> None:
        self.service = service
        self.lock = asyncio.Lock()
        self.newest = 0
        self.generations: tuple[int, ...] = ()
        self.from_first = False
        """Whether a look goes through every generation that there may be, and not the newest two only."""
        self.last: tuple[bytes, Entry] | None = None
        self._streams = streams
        self._names = names
        self._make_token = Ids()
        self._tail: Reader | None = None
        self._owed: dict[bytes, Noted] = {}
        self._ours: dict[bytes, set[str]] = {}
        """The claims of our own that may stand, and after which nothing was sent."""
        self.fold = self._anew()

    def stream(self, generation: int) -> str:
        """Return the name of a generation's stream."""
        return self._names.letters(self.service, generation)

    def _anew(self) -> Fold:
        return Fold(self.service, self._names.of(""))

    def close(self) -> None:
        """Let go of the link."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    async def look(self) -> Fold:
        """Fold everything as of now; whoever calls this holds the lock."""
        lost = False
        for _ in range(TRIES):
            try:
                await self._look()
            except Gone:
                self.close()
            except LinkLost:
                # the link was kept since an earlier call, and may have ended since
                self.close()
                if lost:
                    raise
                lost = True
            else:
                return self.fold
        raise BusUnavailable(f"the dead letters of {self.service} were compacted {TRIES} times meanwhile", {})

    async def _look(self) -> None:
        if self._tail is not None and not self._tail.alive:
            # the link was lost, or the stream was deleted, and another of its name may be there now
            self.close()
            self.fold = self._anew()
        await self._find_newest()
        readers = await self._readers()
        try:
            self.generations = tuple(reader.generation for reader in readers)
            if set(self.fold.next) - set(self.generations):
                # a generation is gone: what was known of it stands in the next one
                self.fold = self._anew()
                raise Gone(self.service)
            for reader in readers:
                while entries := await reader.more():
                    for entry in entries:
                        self.fold.add(entry)
            if self.newest in self.fold.sealed:
                # the next one is there, though it may not be announced yet
                self.newest += 1
                raise Gone(self.service)
            if self.newest in self.generations:
                self._tail = readers.pop()
        finally:
            for reader in readers:
                reader.close()

    async def _readers(self) -> list[Reader]:
        """Begin to read each generation that is there, the newest last, or go on where it is read already."""
        tail, self._tail = self._tail, None
        readers: list[Reader] = []
        try:
            for generation in range(0 if self.from_first else max(self.newest - 1, 0), self.newest + 1):
                if tail is not None and tail.generation == generation and tail.alive:
                    readers.append(tail)
                    tail = None
                    continue
                offset = max(self.fold.next.get(generation, 0) - 1, 0)
                try:
                    readers.append(await self._streams.read(self.stream(generation), generation, offset))
                except Gone:
                    pass  # it was compacted, or it never was
        except BaseException:
            for reader in readers:
                reader.close()
            raise
        finally:
            if tail is not None:
                tail.close()
        return readers

    async def _find_newest(self) -> None:
        while await self._streams.ask(commands.Exchange.Declare(exchange=self.stream(self.newest + 1), passive=True)):
            self.newest += 1

    async def entry(self, row: Row) -> Entry:
        """Return a letter's entry."""
        if self.last is not None and self.last[0] == row.key:
            return self.last[1]
        reader = await self._streams.read(self.stream(row.generation), row.generation, row.offset, ONE)
        try:
            while entries := await reader.more():
                if entries[0].offset == row.offset:
                    entries[0].nth = row.nth
                    return entries[0]
        finally:
            reader.close()
        raise BusUnavailable(f"dead letter {row.id} of {self.service} cannot be read now", {})

    async def entries(self, rows: Sequence[Row]) -> AsyncIterator[tuple[Row, Entry]]:
        """Read the entries of these letters, in the order of the streams. Raises Gone."""
        wanted: dict[int, dict[int, Row]] = {}
        for row in rows:
            wanted.setdefault(row.generation, {})[row.offset] = row
        for generation, left in sorted(wanted.items()):
            reader = await self._streams.read(self.stream(generation), generation, min(left))
            try:
                while left and (entries := await reader.more()):
                    for entry in entries:
                        if (found := left.pop(entry.offset, None)) is not None:
                            entry.nth = found.nth
                            yield found, entry
            finally:
                reader.close()
            if left:
                raise BusUnavailable(f"{len(left)} dead letters of {self.service} cannot be read now: try again", {})

    async def act(
        self,
        letter: Letter,
        kind: str,
        copy: Callable[[Row, Entry, str], Parcel] | None = None,
        to: str = "",
        to_place: bytes = b"",
    ) -> None:
        """Claim a letter, send a copy of it where one is asked for, and close it with a mark of this kind.

        Raises LookupError where it is closed, or another's. Of several who act at once, one gets it.
        """
        async with self.lock:
            row = await self.known(letter)
            if (owed := self._owed.get(row.key)) is not None:
                # it was done before the connection was lost; only the mark is missing
                await self._close(owed)
                del self._owed[row.key]
                return
            claim = await self._claim(row)
            if copy is not None:
                await self._send(row, claim, copy)
            done = claim._replace(kind=kind, to=to, to_place=to_place)
            try:
                await self._close(done)
            except (BusUnavailable, ConnectionError, TimeoutError) as error:
                self._owed[row.key] = done
                raise BusUnavailable(f"it was {kind}, but that could not be noted: {error}", {}) from error

    async def known(self, letter: Letter) -> Row:
        """Return the letter's row; raises LookupError where there is none."""
        row = self.fold.ids.get(letter.id)
        if row is None or self._tail is None or not self._tail.alive:
            await self.look()
            row = self.fold.ids.get(letter.id)
        if row is None:
            raise LookupError(
                f"there is no dead letter {letter.id} of {self.service}; closed ones are gone after `dead compact`"
            )
        return row

    async def _send(self, row: Row, claim: Noted, copy: Callable[[Row, Entry, str], Parcel]) -> None:
        sending = False
        try:
            parcel = copy(row, await self.entry(row), claim.token)
            await self._require_ours(row, claim)
            sending = True
            # from here on it may have been sent
            self._ours.pop(row.key, None)
            await self._streams.store([parcel])
        except (Unroutable, PublishRefused):
            await self._release(claim)
            raise
        except Gone as error:
            await self._release(claim)
            raise BusUnavailable(f"the dead letters of {self.service} are being compacted: try again", {}) from error
        except (BusUnavailable, ConnectionError, TimeoutError) as error:
            if not sending:
                raise
            raise BusUnavailable(
                f"{error}; it may have been sent, and nobody can claim it for 5 minutes", {}
            ) from error

    async def _claim(self, row: Row) -> Noted:
        for _ in range(TRIES):
            fold = self.fold
            if not fold.is_open(row):
                self._ours.pop(row.key, None)
                raise self._refusal(row)
            if await self._sealed():
                claim = Noted(CLAIM, row.id, row.key, row.place, row.turn, operator(), clock.now(), self._make_token())
                # it may be stored though nothing more is heard of it
                ours = self._ours.setdefault(row.key, set())
                ours.add(claim.token)
                if await self._note(claim) and fold.is_open(row) and (holder := fold.claims.get(row.key)) is not None:
                    if holder.token not in ours:
                        del self._ours[row.key]
                        raise self._refusal(row)
                    ousted = fold.ousted.get(row.key)
                    if ousted is None or ousted.token in ours or await self._heard_out(row, holder):
                        return claim._replace(token=holder.token)
            await self.look()
            row = self.fold.rows.get(row.key, row)
        raise BusUnavailable(f"dead letter {row.id} of {self.service} could not be claimed", {})

    def _refusal(self, row: Row) -> LookupError:
        letter, holder = f"dead letter {row.id} of {self.service}", self.fold.claims.get(row.key)
        if holder is None or not self.fold.is_open(row):
            return LookupError(f"{letter} is not open any more{self.fold.closed_by(row)}")
        return LookupError(
            f"{letter} is being handled by somebody else: {holder.operator} since {holder.at:%H:%M:%S} UTC"
        )

    async def _require_ours(self, row: Row, claim: Noted) -> None:
        """Raise LookupError where another took the letter over, because this process stood still."""
        try:
            while self._tail is not None and (entries := await self._tail.more()):
                for entry in entries:
                    self.fold.add(entry)
        except Gone:
            self.close()
        if self._tail is None or self.newest in self.fold.sealed:
            await self.look()
        holder = self.fold.claims.get(row.key)
        if holder is None or holder.token != claim.token:
            self._ours.pop(row.key, None)
            raise self._refusal(row)

    async def _heard_out(self, row: Row, ours: Noted) -> bool:
        """Wait for the mark of who had the letter before: that their claim is over is what two clocks say.

        Return whether the letter is ours still.
        """
        fold, tail = self.fold, self._tail
        try:
            async with asyncio.timeout(HEARD_OUT):
                while tail is not None and fold.claims.get(row.key) == ours:
                    for entry in await tail.next():
                        fold.add(entry)
        except TimeoutError:
            pass  # nothing came: it died
        except Gone:
            self.close()
            return False
        return fold.claims.get(row.key) == ours

    async def _sealed(self) -> bool:
        """Tell whether all that may be claimed in older generations was read; seal what a compaction left unsealed."""
        for generation in self.generations:
            if generation < self.newest and generation not in self.fold.sealed:
                try:
                    await self._streams.store([mark(self.stream(generation), SEAL)])
                except Unroutable:
                    pass  # it is gone: the next look tells
                return False
        return self._tail is not None and self.newest not in self.fold.sealed

    async def _close(self, done: Noted) -> None:
        """Append the mark to the newest generation: where that was sealed meanwhile, to the one after it too."""
        for _ in range(TRIES):
            if await self._note(done) and self.newest not in self.fold.sealed:
                self._ours.pop(done.key, None)
                return
            await self.look()
        raise BusUnavailable("the mark could not be stored", {})

    async def put(self, id: str, token: str, flags: int, properties: bytes, body: bytes) -> None:
        """Put an entry into the newest generation: where that was sealed meanwhile, into the one after it too."""
        for _ in range(TRIES):
            stream = self.stream(self.newest)
            if not self.generations:
                raise Unroutable(
                    f"there is no queue {stream!r}: start a worker of {self.service} once, which declares it", {}
                )
            parcel = Parcel(id, "", stream, flags, properties, body, mandatory=True)
            if await self._append(parcel, None, token) and self.newest not in self.fold.sealed:
                return
            await self.look()
        raise BusUnavailable(f"the dead letters of {self.service} are being compacted: try again", {})

    async def _release(self, claim: Noted) -> None:
        self._ours[claim.key] = {claim.token}
        try:
            if await self._note(claim._replace(kind=RELEASED)):
                del self._ours[claim.key]
        except (BusUnavailable, ConnectionError, TimeoutError):
            pass  # it stays ours

    async def _note(self, noted: Noted) -> bool:
        return await self._append(mark(self.stream(self.newest), noted.headers()), noted.kind, noted.token)

    async def _append(self, parcel: Parcel, kind: str | None, token: str) -> bool:
        """Append an entry to the newest generation and read on to it; return False where that went away meanwhile."""
        if (tail := self._tail) is None:
            return False
        try:
            await self._streams.store([parcel])
            await self._read_to(tail, kind, token)
        except (Unroutable, Gone):
            self.close()
            return False
        return True

    async def _read_to(self, reader: Reader, kind: str | None, token: str) -> None:
        while True:
            for entry in (entries := await reader.next()):
                self.fold.add(entry)
            if any(_is(entry, kind, token) for entry in entries):
                return

    async def cut(self, generation: int) -> None:
        """Say from where on what comes to an older generation is numbered alike in it and in the newest.

        Everything before that is read then, the seal too: what is behind at the broker is waited for.
        """
        offset = max(self.fold.next.get(generation, 0) - 1, 0)
        stream, token = self.stream(generation), self._make_token()
        reader = await self._streams.read(stream, generation, offset)
        try:
            await self._streams.store([mark(stream, {**SEAL, TOKEN: token})])
            await self._read_to(reader, SEALED, token)
            if self.fold.cuts.get(generation, (0, ""))[0] > generation:
                return  # done by a compaction that was cut off
            told = {MARK: CUT, INTO: self.newest, TOKEN: token}
            # the newest first: what it has before its cut came to the older one before that one's
            await self._streams.store([mark(self.stream(self.newest), told)])
            await self._streams.store([mark(stream, told)])
            await self._read_to(reader, CUT, token)
        finally:
            reader.close()


def _is(entry: Entry, kind: str | None, token: str) -> bool:
    return entry.direct and (entry.headers.get(MARK), entry.headers.get(TOKEN)) == (kind, token)
