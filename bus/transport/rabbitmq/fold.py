"""The letters of a service: the fold of what its streams hold, which is letters, copies of them, and marks. Pure.

The order of the entries matters for claims only, where the stream is the arbiter: the first live one has the letter.
Everything else comes to the same in whatever order it is read, so that a letter may be copied from one generation of
the stream into the next while operators go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from sys import intern
from typing import Any, Final, NamedTuple

from ... import clock
from ...outcome import Mark
from . import copies, records
from .records import Entry


MARK: Final = "tidegate-letter-mark"
LETTER: Final = "tidegate-letter-id"
KEY: Final = "tidegate-letter-key"
PLACE: Final = "tidegate-letter-place"
TURN: Final = "tidegate-letter-turn"
OPERATOR: Final = "tidegate-letter-operator"
AT: Final = "tidegate-letter-at"
TOKEN: Final = "tidegate-letter-token"
TO: Final = "tidegate-letter-to"
TO_PLACE: Final = "tidegate-letter-to-place"
INTO: Final = "tidegate-letter-into"
FAILED_AGAIN: Final = "tidegate-letter-failed-again"

CLAIM, RELEASED, REPLAYED, EDITED, DISCARDED = "claim", "released", "replayed", "edited", "discarded"
RESTORED, SEALED, LOOKED, CUT = "restored", "sealed", "looked", "cut"
CLOSING: Final = (REPLAYED, EDITED, DISCARDED)
CLAIM_LASTS: Final = timedelta(minutes=5)
REMEMBERED: Final = timedelta(days=7)
"""How long a compaction keeps the marks of letters that it erases: a replay may fail again, a copy may come late."""


class Noted(NamedTuple):
    """A mark, as it stands in a stream. `place` is the message and handler that it is about, `key` the one letter."""

    kind: str
    id: str
    key: bytes
    place: bytes
    turn: int
    operator: str
    at: datetime
    token: str
    to: str = ""
    to_place: bytes = b""

    def headers(self) -> dict[str, Any]:
        """Return the mark as headers of an entry."""
        told = {MARK: self.kind, LETTER: self.id, KEY: self.key.hex(), PLACE: self.place.hex(), TURN: self.turn}
        told |= {OPERATOR: self.operator, AT: self.at.isoformat(), TOKEN: self.token}
        return told | ({TO: self.to, TO_PLACE: self.to_place.hex()} if self.to else {})


@dataclass(slots=True)
class Row:
    """One letter: where its first copy is, how often it was opened again, and the letter before it at its place."""

    id: str
    key: bytes
    place: bytes
    generation: int
    offset: int
    failed_at: datetime
    worker: str
    turn: int = 0
    failed_again: int = 0
    nth: str = ""
    """Which of its equals it is, where it has no id."""
    carried: int = -1
    """The newest generation that it was carried into, with its id."""
    earlier: Row | None = None


@dataclass(slots=True)
class Fold:
    """What the entries before `next` of each generation come to."""

    service: str
    prefix: str
    next: dict[int, int] = field(default_factory=dict)
    sealed: set[int] = field(default_factory=set)
    ids: dict[str, Row] = field(default_factory=dict)
    rows: dict[bytes, Row] = field(default_factory=dict)
    claims: dict[bytes, Noted] = field(default_factory=dict)
    ousted: dict[bytes, Noted] = field(default_factory=dict)
    """The claim before that of who has a letter now, where it was over by their clocks only."""
    cuts: dict[int, tuple[int, str]] = field(default_factory=dict)
    """The last cut in each generation: into which one, and its token."""
    marks: dict[bytes, list[Noted]] = field(default_factory=dict)
    _closed: dict[bytes, int] = field(default_factory=dict)
    _latest: dict[bytes, Row] = field(default_factory=dict)
    _lineage: dict[bytes, bytes] = field(default_factory=dict)
    _tokens: dict[str, int] = field(default_factory=dict)
    """The newest generation in which each mark stands."""
    _equals: dict[int, Counter[bytes]] = field(default_factory=dict)
    """How many equal messages without an id came to each generation since its last cut."""
    _unnamed: dict[int, list[bytes]] = field(default_factory=dict)
    """The letters without an id of each generation."""

    def add(self, entry: Entry) -> None:
        """Take an entry; one that was taken before changes nothing."""
        if entry.offset < self.next.get(entry.generation, 0):
            return
        self.next[entry.generation] = entry.offset + 1
        # what a message carries is no mark, whatever it says: marks are put into the stream directly
        if entry.direct and MARK in entry.headers:
            self._mark(entry)
        else:
            self._letter(entry)

    def is_open(self, row: Row) -> bool:
        """Tell whether nobody closed the letter, or somebody restored it after that."""
        return self._closed.get(row.key, -1) < row.turn

    def next_turn(self, key: bytes) -> int:
        """Return the turn in which a letter is open that was closed, also where a compaction erased it."""
        return self._closed.get(key, -1) + 1

    def failed_again(self, row: Row) -> int:
        """Return how many replays of its message came back to this letter."""
        counted = sum(
            1
            for place in self._places(row.place)
            for mark in self.marks.get(place, ())
            if mark.key != row.key and ((mark.kind == REPLAYED and not mark.to) or mark.to_place == row.place)
        )
        return max(counted, row.failed_again)

    def history(self, row: Row) -> tuple[Mark, ...]:
        """Return what was done about the message, oldest first."""
        places = list(self._places(row.place))
        noted = [mark for place in places for mark in self.marks.get(place, ())]
        if (claim := self.claims.get(row.key)) is not None:
            noted.append(claim)
        if not noted:
            return ()
        told = []
        for place in places:
            failed = self._latest.get(place)
            while failed is not None:
                kind: Any = "failed again" if self.failed_again(failed) else "failed"
                told.append(Mark(kind=kind, operator=failed.worker, at=failed.failed_at))
                failed = failed.earlier
        told += [Mark(kind=_TOLD[m.kind], operator=m.operator, at=m.at, to=m.to) for m in noted]  # type: ignore[arg-type]
        return tuple(sorted(told, key=lambda mark: mark.at))

    def closed_by(self, row: Row) -> str:
        """Return who closed the letter, as the end of a sentence; nothing where that is not known."""
        closing = [mark for mark in self.history(row) if mark.kind in CLOSING]
        if not closing:
            return ""
        return f": {closing[-1].kind} by {closing[-1].operator} at {closing[-1].at:%Y-%m-%d %H:%M:%S} UTC"

    def kept(self, into: int) -> list[Noted]:
        """Return the marks that have to be carried into a generation: of open letters, live claims, the young ones."""
        since = clock.now() - REMEMBERED
        places = {place for row in self.rows.values() if self.is_open(row) for place in self._places(row.place)}
        found = [m for place, marks in self.marks.items() for m in marks if place in places or m.at > since]
        found += [claim for key, claim in self.claims.items() if key in self.rows]
        return [mark for mark in found if self._tokens.get(f"{mark.kind} {mark.token}", -1) < into]

    def _places(self, place: bytes) -> Iterator[bytes]:
        seen: set[bytes] = set()
        while place not in seen:
            seen.add(place)
            yield place
            if (before := self._lineage.get(place)) is None:
                return
            place = before

    def _mark(self, entry: Entry) -> None:
        kind = entry.headers[MARK]
        if kind == SEALED:
            self.sealed.add(entry.generation)
        if kind == CUT:
            self._cut(entry)
        if kind not in _TOLD and kind != RELEASED:
            return
        mark = _noted(entry.headers)
        holder = self.claims.get(mark.key)
        if kind == CLAIM:
            # whoever claims after the seal has not seen what is claimed in the next generation
            self._stands(mark, entry)
            if entry.generation not in self.sealed and (holder is None or mark.at - holder.at > CLAIM_LASTS):
                self.claims[mark.key] = mark
                self.ousted.pop(mark.key, None)
                if holder is not None:
                    self.ousted[mark.key] = holder
                    self.marks.setdefault(holder.place, []).append(holder)
        elif kind == RELEASED:
            if holder is not None and holder.token == mark.token:
                del self.claims[mark.key]
                self.ousted.pop(mark.key, None)
        elif self._stands(mark, entry):
            self._note(mark)

    def _stands(self, mark: Noted, entry: Entry) -> bool:
        """Note where the mark stands; return whether it is new."""
        token = f"{mark.kind} {mark.token}"
        before = self._tokens.get(token, -1)
        self._tokens[token] = max(before, entry.generation)
        return before < 0

    def _note(self, mark: Noted) -> None:
        self.marks.setdefault(mark.place, []).append(mark)
        if mark.kind in CLOSING:
            self._closed[mark.key] = max(mark.turn, self._closed.get(mark.key, -1))
            self.claims.pop(mark.key, None)
            self.ousted.pop(mark.key, None)
        if mark.kind == EDITED:
            self._lineage[mark.to_place] = mark.place

    def _cut(self, entry: Entry) -> None:
        """Count anew from here, as the other generation does that gets the same: the n-th of equals is one letter."""
        into = _whole(entry.headers.get(INTO))
        if into == entry.generation:
            # the older generation has what came before, and where it is gone, that was carried
            for key in self._unnamed.pop(entry.generation, ()):
                if (row := self.rows.pop(key, None)) is not None:
                    del self.ids[row.id]
                    self._latest.pop(row.place, None)
        self.cuts[entry.generation] = into, str(entry.headers.get(TOKEN))
        self._equals[entry.generation] = Counter()

    def _number(self, entry: Entry, equals: bytes) -> bool:
        """Number a message without an id among its equals; return False where the older generation has it."""
        if (cut := self.cuts.get(entry.generation)) is None:
            return entry.generation - 1 not in self.next
        counted = self._equals[entry.generation]
        counted[equals] += 1
        entry.nth = f"{cut[1]}-{counted[equals]}"
        return True

    def _letter(self, entry: Entry) -> None:
        equals = records.equals(entry)
        if equals is not None and not self._number(entry, equals):
            return
        key, place, at, worker = records.known(entry, self.service, self.prefix)
        told = entry.headers if entry.direct else {}
        key = _digest(told.get(KEY), key)
        given = told.get(LETTER)
        row = self.rows.get(key)
        if row is None:
            id = str(given) if given else f"{entry.generation}-{entry.offset}"
            before = self._latest.get(place)
            row = Row(id, key, place, entry.generation, entry.offset, at, intern(worker), nth=entry.nth, earlier=before)
            self.rows[key] = self.ids[id] = self._latest[place] = row
            if equals is not None:
                self._unnamed.setdefault(entry.generation, []).append(key)
        if given:
            row.carried = max(row.carried, entry.generation)
        if given and given != row.id:
            # the copy came after one that the fanout exchange put there: the name that was shown before counts
            self.ids.pop(row.id, None)
            row.id = str(given)
            self.ids[row.id] = row
        row.turn = max(row.turn, _whole(told.get(TURN)))
        row.failed_again = max(row.failed_again, _whole(told.get(FAILED_AGAIN)))
        if told.get(TOKEN):
            restored = _noted({**told, MARK: RESTORED, KEY: key.hex(), PLACE: place.hex()})
            if self._stands(restored, entry):
                self._note(restored)


_TOLD: Final = {
    CLAIM: "claimed",
    REPLAYED: "replayed",
    EDITED: "edited",
    DISCARDED: "discarded",
    RESTORED: "restored",
}


def _noted(headers: dict[str, Any]) -> Noted:
    return Noted(
        kind=intern(str(headers[MARK])),
        id=str(headers.get(LETTER, "")),
        key=_digest(headers.get(KEY), b""),
        place=_digest(headers.get(PLACE), b""),
        turn=_whole(headers.get(TURN)),
        operator=intern(str(headers.get(OPERATOR, ""))),
        at=copies.moment(headers.get(AT), clock.now()),
        token=str(headers.get(TOKEN)),
        to=str(headers.get(TO, "")),
        to_place=_digest(headers.get(TO_PLACE), b""),
    )


def _digest(value: Any, default: bytes) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        return default


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0
