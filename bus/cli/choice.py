"""Which dead letters a command is about: ids, or everything that the filters match."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from .. import clock
from ..app import App
from ..errors import ConfigurationError
from ..outcome import Letter
from ..transport import DeadLetters
from .span import span


AT_ONCE: Final = 8
"""Services whose letters are read at the same time."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter is meant if it has one of the ids, where there are any, and matches every filter."""

    ids: frozenset[str] = frozenset()
    service: str | None = None
    handler: str | None = None
    type: str | None = None
    reason: str | None = None
    older: timedelta | None = None

    def fits(self, letter: Letter) -> bool:
        """Tell whether the letter is meant."""
        return (
            (not self.ids or bool(self.ids & {letter.id, name(letter)}))
            and self.handler in (None, letter.handler, f"{letter.service}.{letter.handler}")
            and self.type in (None, letter.message.type)
            and self.reason in (None, letter.failure.reason)
            and (self.older is None or clock.now() - letter.failure.last_failed_at > self.older)
        )

    def services(self, app: App) -> list[str]:
        """Return the services whose letters may be meant; raises ConfigurationError for one that the app lacks."""
        named = {self.service} if self.service else {id.rpartition("/")[0] for id in self.ids}
        return [service.name for service in app.chosen(*(() if "" in named else sorted(filter(None, named))))]


def choice(
    ids: Sequence[str] | None,
    service: str | None,
    handler: str | None,
    type: str | None,
    reason: str | None,
    older_than: str | None,
) -> Choice:
    """Return the choice that a command line makes; raises ConfigurationError for a span that is none."""
    older = None if older_than is None else span("--older-than", older_than)
    return Choice(frozenset(ids or ()), service, handler, type, reason, older)


def name(letter: Letter) -> str:
    """Return the name of a letter that is unique among all services."""
    return f"{letter.service}/{letter.id}"


async def find(app: App, dead: DeadLetters, chosen: Choice) -> list[Letter]:
    """Return the open letters that are meant, by service, oldest first.

    Raises LookupError for an id that no open letter has, and ConfigurationError for one that several have.
    """
    turn = asyncio.Semaphore(AT_ONCE)

    async def of(service: str) -> list[Letter]:
        async with turn:
            return [letter async for letter in dead.browse(service) if chosen.fits(letter)]

    async with asyncio.TaskGroup() as tasks:
        browsing = [tasks.create_task(of(service)) for service in chosen.services(app)]
    found = [letter for task in browsing for letter in task.result()]
    for id in sorted(chosen.ids):
        meant = [name(letter) for letter in found if id in (letter.id, name(letter))]
        if not meant:
            raise LookupError(f"there is no open dead letter {id}; `dead list` shows those there are")
        if len(meant) > 1:
            raise ConfigurationError(f"{id} names {len(meant)} letters: {', '.join(meant)}; give one of these names")
    return found
