"""The record of what was declared: a stream that whoever declares appends to, because AMQP can list nothing.

It is only ever appended to, and what it comes to is its fold: what each version of each service declared, and the marks
that say what became of it since. Anybody may write into a stream, so reading is total: what is no entry is passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import orjson

from ... import clock
from ...errors import BusUnavailable, Unroutable
from ...message import Ids
from . import copies
from .channel import LinkLost, Parcel
from .stream import Gone, Reader, Streams
from .topology import STREAM, Names, Queue, declare_stream


QUEUE, BINDING, EXCHANGE = "queue", "binding", "exchange"
DECLARED, PRUNING, PRUNED = "declared", "pruning", "pruned"
MIGRATING, MIGRATED = "migrating", "migrated"


class Item(NamedTuple):
    """One thing at the broker, by its name there. A binding's name is its queue's; `exchange` and `key` are its own."""

    kind: str
    name: str
    exchange: str = ""
    key: str = ""


@dataclass(frozen=True)
class Declaration:
    """What one version of a service declares."""

    app: str
    service: str
    queues: tuple[Queue, ...] = ()
    steps: tuple[Queue, ...] = ()
    exchanges: tuple[tuple[str, str], ...] = ()
    """Name and type of each."""

    @cached_property
    def digest(self) -> str:
        """Return the same for equal declarations, in every process."""
        whole = orjson.dumps(self.as_json(), option=orjson.OPT_SORT_KEYS)
        return blake2b(whole, digest_size=12).hexdigest()

    @cached_property
    def items(self) -> frozenset[Item]:
        """Everything that it is about, one by one."""
        return frozenset(self._items())

    def _items(self) -> Iterator[Item]:
        for queue in (*self.queues, *self.steps):
            yield Item(QUEUE, queue.name)
            yield from (Item(BINDING, queue.name, exchange, key) for exchange, key in queue.bindings)
        yield from (Item(EXCHANGE, name) for name, _ in self.exchanges)

    def as_json(self) -> dict[str, Any]:
        """Return it as values of JSON, in an order that does not depend on the code's."""
        return {
            "app": self.app,
            "service": self.service,
            "queues": [_queue_as_json(queue) for queue in sorted(self.queues, key=_by_name)],
            "steps": [_queue_as_json(step) for step in sorted(self.steps, key=_by_name)],
            "exchanges": [list(exchange) for exchange in sorted(self.exchanges)],
        }


@dataclass(frozen=True, slots=True)
class Declared:
    """An entry: who declared what, and when; `offset` is where it stands in the stream."""

    declaration: Declaration
    version: str
    worker: str
    at: datetime
    offset: int = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """An entry that says what an operator did, or is about to do, about `items`; `details` are the tool's own."""

    kind: str
    app: str
    operator: str
    at: datetime
    items: tuple[Item, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    offset: int = -1


@dataclass(slots=True)
class Fold:
    """What the entries before the offset `next` come to."""

    next: int = 0
    declared: dict[tuple[str, str], dict[str, Declared]] = field(default_factory=dict)
    """By app and service: the last entry of each declaration, by its digest; the newest is last."""
    marks: list[Mark] = field(default_factory=list)
    """All of them, oldest first."""
    _marked: dict[str, dict[Item, int]] = field(default_factory=lambda: {PRUNING: {}, PRUNED: {}})

    def add(self, entry: Declared | Mark) -> None:
        """Take the next entry; one that was taken before changes nothing."""
        if entry.offset < self.next:
            return
        self.next = entry.offset + 1
        if isinstance(entry, Mark):
            if entry.kind == PRUNED:
                self._end(entry.details.get(PRUNING))
            self.marks.append(entry)
            if entry.kind in self._marked:
                self._marked[entry.kind].update(dict.fromkeys(entry.items, entry.offset))
            return
        of_service = self.declared.setdefault((entry.declaration.app, entry.declaration.service), {})
        of_service.pop(entry.declaration.digest, None)
        of_service[entry.declaration.digest] = entry

    def _end(self, begun: Any) -> None:
        """Forget what a prune was to remove, now that it says what it removed."""
        for mark in self.marks:
            if mark.kind == PRUNING and mark.offset == begun:
                for item in mark.items:
                    self._marked[PRUNING].pop(item, None)

    def last(self, app: str, service: str) -> Declared | None:
        """Return the newest entry of a service."""
        of_service = self.declared.get((app, service))
        return next(reversed(of_service.values())) if of_service else None

    def stands(self, declaration: Declaration) -> bool:
        """Tell whether the service's last entry says just this, and nothing of it was pruned since."""
        last = self.last(declaration.app, declaration.service)
        return (
            last is not None
            and last.declaration.digest == declaration.digest
            and not any(self.pruned_at(item, begun=True) > last.offset for item in declaration.items)
        )

    def services(self, app: str) -> list[str]:
        """Return every service of an app that ever declared anything."""
        return [service for of_app, service in self.declared if of_app == app]

    def standing(self, app: str) -> dict[Item, Declared]:
        """Return what was declared by any version of an app and not pruned since, and the newest that declared it."""
        return self._standing(lambda of_app: of_app == app)

    def others(self, app: str) -> dict[Item, Declared]:
        """Return the same for all other apps."""
        return self._standing(lambda of_app: of_app != app)

    def _standing(self, wanted: Any) -> dict[Item, Declared]:
        found: dict[Item, Declared] = {}
        for (app, _), of_service in self.declared.items():
            if not wanted(app):
                continue
            for entry in of_service.values():
                for item in entry.declaration.items:
                    newer = item not in found or found[item].offset < entry.offset
                    if newer and entry.offset > self.pruned_at(item):
                        found[item] = entry
        return found

    def pruned_at(self, item: Item, *, begun: bool = False) -> int:
        """Return the offset of the last mark that an item was pruned, or with `begun` that it was to be; else -1.

        A queue takes its bindings with it.
        """
        whole = [item, Item(QUEUE, item.name)] if item.kind == BINDING else [item]
        kinds = (PRUNING, PRUNED) if begun else (PRUNED,)
        return max(self._marked[kind].get(each, -1) for kind in kinds for each in whole)

    def pruned_since(self, offset: int) -> frozenset[Item]:
        """Return what was pruned, or was to be, from an offset on, and nobody declared after that."""
        marked = {item for of_kind in self._marked.values() for item, at in of_kind.items() if at >= offset}
        entries = [entry for of_service in self.declared.values() for entry in of_service.values()]
        again = {
            item
            for entry in entries
            if entry.offset > offset
            for item in marked & entry.declaration.items
            if entry.offset > self.pruned_at(item, begun=True)
        }
        return frozenset(marked - again)


class Record:
    """The stream `tidegate.topology` of one broker, read on from where it was read to."""

    def __init__(self, streams: Streams, names: Names) -> None:
        self.stream = names.record
        self.fold = Fold()
        self._streams = streams
        self._make_token = Ids()
        self._awaited: dict[str, int] = {}
        """Where our own entries stand that were just appended, by their token."""
        self._reading = asyncio.Lock()

    async def read(self) -> Fold:
        """Return what everything comes to as of now; an empty fold where there is no record.

        Raises AccessRefused without the right to read, BusUnavailable where the broker does not answer in time.
        """
        async with self._streams.told(), self._reading:
            for last in (False, True):
                try:
                    return await self._read()
                except LinkLost:
                    # the link was kept since an earlier call, and may have ended since
                    if last:
                        raise
            raise AssertionError("unreachable")

    async def _read(self) -> Fold:
        try:
            # the last one again: a stream of which nothing is heard cannot be told from one that is slow
            reader = await self._streams.read(self.stream, 0, max(self.fold.next - 1, 0))
        except Gone:
            self.fold = Fold()
            return self.fold
        try:
            await self._take(reader)
        except Gone:
            self.fold = Fold()
        finally:
            reader.close()
        return self.fold

    async def _take(self, reader: Reader) -> None:
        while entries := await reader.more():
            for entry in entries:
                if entry.offset < self.fold.next:
                    continue
                token, read = _read_entry(entry.received.body, entry.offset)
                if token in self._awaited:
                    self._awaited[token] = entry.offset
                if read is not None:
                    self.fold.add(read)
                self.fold.next = entry.offset + 1

    async def declared(self, declaration: Declaration, worker: str) -> Declared:
        """Append that this was declared, and return the entry as it stands.

        Raises AccessRefused where the stream is missing and may not be declared, PublishError where it is not stored.
        """
        entry = Declared(declaration, _version(), worker, clock.now())
        told = {"version": entry.version, "worker": worker, "at": entry.at.isoformat()}
        offset = await self._append({"record": DECLARED, **told, **declaration.as_json()})
        return replace(entry, offset=offset)

    async def mark(
        self, kind: str, app: str, operator: str, items: tuple[Item, ...] = (), details: Mapping[str, Any] | None = None
    ) -> Mark:
        """Append a mark, read on to it, and return it as it stands; `fold` has everything before it. Raises alike."""
        mark = Mark(kind, app, operator, clock.now(), items, dict(details or {}))
        told = {"app": app, "operator": operator, "at": mark.at.isoformat(), "details": mark.details}
        offset = await self._append({"record": kind, **told, "items": [list(item) for item in items]})
        return replace(mark, offset=offset)

    async def _append(self, body: dict[str, Any]) -> int:
        """Append, read on to it, and return where it stands."""
        token = self._make_token()
        self._awaited[token] = -1
        flags, properties = copies.encode({"content_type": "application/json", "delivery_mode": 2})
        whole = orjson.dumps({**body, "token": token}, default=str)
        parcel = Parcel(token, "", self.stream, flags, properties, whole, mandatory=True)
        try:
            async with self._streams.told():
                try:
                    await self._streams.store([parcel])
                except Unroutable:
                    await declare_stream(self._streams.addresses, self.stream, STREAM)
                    await self._streams.store([parcel])
            await self.read()
            if (offset := self._awaited[token]) < 0:
                raise BusUnavailable(f"what was just noted in {self.stream} cannot be read there: run it again", {})
            return offset
        finally:
            del self._awaited[token]


def _version() -> str:
    try:
        return version("tidegate")
    except PackageNotFoundError:
        return "unknown"


def _by_name(queue: Queue) -> str:
    return queue.name


def _queue_as_json(queue: Queue) -> dict[str, Any]:
    bindings = [list(binding) for binding in sorted(queue.bindings)]
    return {"name": queue.name, "arguments": dict(queue.arguments), "bindings": bindings}


def _read_entry(body: bytes, offset: int) -> tuple[str, Declared | Mark | None]:
    """Return the token and the entry of a body; nothing for what is none."""
    try:
        told = orjson.loads(body)
        token, at = str(told["token"]), copies.moment(told["at"], clock.now())
        if told["record"] == DECLARED:
            return token, Declared(_declaration(told), str(told["version"]), str(told["worker"]), at, offset)
        items = tuple(Item(*map(str, item)) for item in told["items"])
        details = dict(told["details"])
        return token, Mark(str(told["record"]), str(told["app"]), str(told["operator"]), at, items, details, offset)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", None


def _declaration(told: Mapping[str, Any]) -> Declaration:
    return Declaration(
        app=str(told["app"]),
        service=str(told["service"]),
        queues=tuple(_queue(queue) for queue in told["queues"]),
        steps=tuple(_queue(step) for step in told["steps"]),
        exchanges=tuple((str(name), str(kind)) for name, kind in told["exchanges"]),
    )


def _queue(told: Mapping[str, Any]) -> Queue:
    bindings = tuple((str(exchange), str(key)) for exchange, key in told["bindings"])
    return Queue(str(told["name"]), dict(told["arguments"]), bindings)
