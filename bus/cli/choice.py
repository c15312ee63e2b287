"""Which dead letters a command is about: ids, or everything that the filters match."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import get_args

from .. import clock
from ..app import App
from ..errors import ConfigurationError
from ..outcome import Letter, Reason
from ..settings import check_name
from ..topic import is_literal
from ..transport import DeadLetters
from .span import span


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
            and (self.older is None or _failed_before(letter, self.older))
        )

    def services(self, app: App) -> list[str]:
        """Return the services whose letters may be meant: the app's, or those that are named, which may be gone."""
        named = {self.service} if self.service else {id.rpartition("/")[0] for id in self.ids}
        known = [service.name for service in app.services]
        if not named or "" in named:
            return known
        return [name if name in known else check_name("service", name) for name in sorted(filter(None, named))]

    def require(self, app: App, found: Sequence[str]) -> None:
        """Raise LookupError for an id that none of the found names has, ConfigurationError for one of several.

        Raises ConfigurationError, where no letter is meant, for a service or handler that the app does not have either.
        """
        if not found:
            self._require_known(app)
        for id in sorted(self.ids):
            meant = [name for name in found if id in (name, name.rpartition("/")[2])]
            if not meant:
                raise LookupError(f"there is no open dead letter {id}; `dead list` shows those there are")
            if len(meant) > 1:
                raise ConfigurationError(
                    f"{id} names {len(meant)} letters: {', '.join(meant)}; give one of these names"
                )

    def _require_known(self, app: App) -> None:
        services = [service.name for service in app.services]
        for service in self.services(app):
            if service not in services:
                raise ConfigurationError(
                    f"no letter matches, and there is no service {service!r}; there are {', '.join(services)}"
                )
        names = [handler.subscription_name for service in app.services for handler in service.handlers]
        if self.handler is not None and all(self.handler not in (each, each.partition(".")[2]) for each in names):
            raise ConfigurationError(
                f"no letter matches, and there is no handler {self.handler!r}; there are {', '.join(names)}"
            )


@dataclass(slots=True)
class Selection:
    """The names of the letters that are meant, oldest first, and how many there are of each handler."""

    names: dict[str, None] = field(default_factory=dict)
    places: Counter[str] = field(default_factory=Counter)


def choice(
    ids: Sequence[str] | None,
    service: str | None,
    handler: str | None,
    type: str | None,
    reason: str | None,
    older_than: str | None,
) -> Choice:
    """Return the choice that a command line makes; raises ConfigurationError for a reason or span that is none."""
    if reason is not None and reason not in get_args(Reason):
        raise ConfigurationError(f"--reason {reason!r}: there are {', '.join(get_args(Reason))}")
    older = None if older_than is None else span("--older-than", older_than)
    return Choice(frozenset(ids or ()), service, handler, type, reason, older)


def name(letter: Letter) -> str:
    """Return the name of a letter that is unique among all services."""
    return f"{letter.service}/{letter.id}"


def _failed_before(letter: Letter, age: timedelta) -> bool:
    # only a worker notes when: what the broker gave up on by itself has the message's own time
    return bool(letter.failure.worker) and clock.now() - letter.failure.last_failed_at > age


async def matching(app: App, dead: DeadLetters, chosen: Choice, *, closed: bool = False) -> AsyncIterator[Letter]:
    """Yield the letters that are meant, by service, oldest first; each is read when it is asked for.

    One whose type is unknown has the type of its handler, where that subscribes to just one.
    """
    patterns = {h.subscription_name: h.subscription(app.events).patterns for s in app.services for h in s.handlers}
    only = {name: found[0] for name, found in patterns.items() if len(found) == 1 and is_literal(found[0])}
    for service in chosen.services(app):
        async for found in dead.browse(service, closed=closed):
            type = found.message.type or only.get(f"{found.service}.{found.handler}", "")
            letter = replace(found, message=replace(found.message, type=type))
            if chosen.fits(letter):
                yield letter


def require_type(app: App, letter: Letter, to: str) -> None:
    """Raise LookupError where a letter's type is unknown, and the handler `to` cannot be run without one."""
    typed = {handler.subscription_name for service in app.services for handler in service.handlers if handler.events}
    if not letter.message.type and to in typed:
        raise LookupError(
            f"the type of {name(letter)} is unknown, as the broker gave up on it by itself, and {to} takes several: "
            "publish its body with `publish TYPE`, and discard it"
        )


async def select(app: App, dead: DeadLetters, chosen: Choice) -> Selection:
    """Return the open letters that are meant; raises as `Choice.require` does."""
    found = Selection()
    async for letter in matching(app, dead, chosen):
        found.names[name(letter)] = None
        found.places[f"{letter.service}.{letter.handler}"] += 1
    chosen.require(app, list(found.names))
    return found


async def one(app: App, dead: DeadLetters, id: str, service: str | None, *, closed: bool = False) -> Letter:
    """Return the letter of this id; raises as `Choice.require` does."""
    chosen = Choice(frozenset({id}), service)
    found = {name(letter): letter async for letter in matching(app, dead, chosen, closed=closed)}
    chosen.require(app, list(found))
    return next(iter(found.values()))
