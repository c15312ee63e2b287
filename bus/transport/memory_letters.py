"""The dead letters of a memory transport: all verbs of an operator, in this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from .. import clock
from ..message import Message, Outgoing
from ..outcome import DeadLetter, Letter, Mark
from ..packing import edited, pack, unpack


OPERATOR: Final = "this process"
Place: TypeAlias = tuple[str, str]
"""A subscription, and the id of a message."""


class MemoryDeadLetters:
    """Open and closed letters of every service."""

    def __init__(self, publish: Callable[[Sequence[Outgoing]], Awaitable[None]]) -> None:
        self._publish = publish
        self._open: dict[str, Letter] = {}
        self._closed: dict[str, Letter] = {}
        self._replayed: defaultdict[Place, int] = defaultdict(int)
        self._history: defaultdict[Place, list[Mark]] = defaultdict(list)
        self._next = 0
        self._claims: set[str] = set()

    def add(self, message: Message, outcome: DeadLetter) -> None:
        """Keep a letter."""
        failure = replace(outcome.failure, exception=None)
        letter = Letter(
            id=f"0-{self._next}", service=failure.service, handler=failure.handler, message=message, failure=failure
        )
        again = self._replayed[_place(letter)]
        self._keep(replace(letter, failed_again=again), "failed again" if again else "failed")

    def _keep(self, letter: Letter, kind: Literal["failed", "failed again"]) -> None:
        failure = letter.failure
        self._history[_place(letter)].append(Mark(kind=kind, operator=failure.worker, at=failure.last_failed_at))
        self._open[letter.id] = letter
        self._next += 1

    def open(self) -> list[Letter]:
        """Return the open letters of all services, oldest first."""
        return [self._told(letter) for letter in self._open.values()]

    async def browse(self, service: str, *, closed: bool = False) -> AsyncIterator[Letter]:
        """Yield the letters of a service as of now, by age."""
        found = [*self._open.values(), *(self._closed.values() if closed else ())]
        for letter in sorted(found, key=lambda letter: int(letter.id.partition("-")[2])):
            if letter.service == service:
                yield self._told(letter)

    async def replay(self, letter: Letter, *, to: str | None = None) -> None:
        """Send the letter to the handler that gave up on it, or to another."""
        with self._claimed(letter):
            await self._publish([Outgoing(letter.message, address=to or f"{letter.service}.{letter.handler}")])
        if to is None:
            self._replayed[_place(letter)] += 1
        self._close(letter, "replayed", to or "")

    async def edit(self, letter: Letter, body: bytes) -> Message:
        """Send a message with another body to the letter's handler."""
        with self._claimed(letter):
            message, address = edited(letter, body), f"{letter.service}.{letter.handler}"
            await self._publish([Outgoing(message, address=address)])
        before, after = _place(letter), (address, message.id)
        self._replayed[after] = self._replayed[before] + 1
        self._close(letter, "edited", message.id)
        self._history[after] = self._history[before]
        return message

    async def discard(self, letter: Letter) -> None:
        """Close the letter for good."""
        with self._claimed(letter):
            self._close(letter, "discarded")

    async def packed(self, letter: Letter) -> Mapping[str, object]:
        """Return the letter as values of JSON."""
        return pack(letter)

    async def restore(self, service: str, packed: Mapping[str, object]) -> bool:
        """Keep a packed letter as an open one, unless it is open already."""
        letter = unpack(packed)
        if any(_same(letter, other) for other in self._open.values()):
            return False
        closed = [other for other in self._closed.values() if _same(letter, other)]
        id = closed[0].id if closed else f"0-{self._next}"
        self._closed.pop(id, None)
        mark = Mark(kind="restored", operator=OPERATOR, at=clock.now())
        if not closed:
            again = packed.get("failed_again")
            self._keep(replace(letter, id=id, failed_again=again if isinstance(again, int) else 0), "failed")
        else:
            self._open[id] = closed[0]
        self._history[_place(letter)].append(mark)
        return True

    async def compact(self, service: str) -> tuple[int, int]:
        """Forget the closed letters of a service."""
        erased = [letter.id for letter in self._closed.values() if letter.service == service]
        for id in erased:
            del self._closed[id]
        return sum(letter.service == service for letter in self._open.values()), len(erased)

    def _close(self, letter: Letter, kind: Literal["replayed", "edited", "discarded"], to: str = "") -> None:
        self._history[_place(letter)].append(Mark(kind=kind, operator=OPERATOR, at=clock.now(), to=to))
        self._closed[letter.id] = self._open.pop(letter.id)

    def _told(self, letter: Letter) -> Letter:
        """Return the letter with its history, which is worth telling once somebody did something about it."""
        history = self._history[_place(letter)]
        acted = any(not mark.kind.startswith("failed") for mark in history)
        return replace(letter, closed=letter.id in self._closed, history=tuple(history) if acted else ())

    @contextmanager
    def _claimed(self, letter: Letter) -> Iterator[None]:
        """Keep others from a letter while somebody acts on it. Raises LookupError where somebody else was first."""
        if letter.id not in self._open or letter.id in self._claims:
            raise LookupError(f"dead letter {letter.id} of {letter.service} is not open any more")
        self._claims.add(letter.id)
        try:
            yield
        finally:
            self._claims.remove(letter.id)


def _place(letter: Letter) -> Place:
    return f"{letter.service}.{letter.handler}", letter.message.id


def _same(one: Letter, other: Letter) -> bool:
    return (_place(one), one.failure.last_failed_at) == (_place(other), other.failure.last_failed_at)
