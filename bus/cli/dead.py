"""`dead`: the dead letters of services; list, show, replay, discard."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final

import typer

from .. import client, clock
from .. import settings as environment
from ..app import App
from ..errors import ConfigurationError
from ..logs import escape
from ..outcome import Letter
from ..transport import DeadLetters
from . import letters as screen


UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Service = Annotated[str | None, typer.Option(help="Of this service only.")]
Handler = Annotated[str | None, typer.Option(help="Of this handler only.")]
Type = Annotated[str | None, typer.Option(help="Of events of this type only.")]
Reason = Annotated[str | None, typer.Option(help="With this reason only, such as exhausted or undecodable.")]
Older = Annotated[str | None, typer.Option(help="That last failed longer ago than this, such as 30m, 2h or 7d.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Letters, as `list` shows them; none means all that match.")]


@dataclass(frozen=True)
class Chosen:
    """Which letters a command is about."""

    ids: frozenset[str]
    service: str | None
    handler: str | None
    type: str | None
    reason: str | None
    older: timedelta | None

    def fits(self, letter: Letter) -> bool:
        """Tell whether the letter is one of them."""
        return (
            (not self.ids or bool(self.ids & {letter.id, screen.name(letter)}))
            and self.handler in (None, letter.handler)
            and self.type in (None, letter.message.type)
            and self.reason in (None, letter.failure.reason)
            and (self.older is None or clock.now() - letter.failure.last_failed_at > self.older)
        )


def command_line(app: App) -> typer.Typer:
    """Return the commands for dead letters."""
    line = typer.Typer(help="Dead letters: list, show, replay, discard.", no_args_is_help=True)
    line.command("list")(_list(app))
    line.command("show")(_show(app))
    line.command("replay", help="Send letters back to the handlers that gave up on them, as attempt 1.")(
        _acting(app, "replay", lambda dead, letter: dead.replay(letter))
    )
    line.command("discard", help="Close letters for good.")(
        _acting(app, "discard", lambda dead, letter: dead.discard(letter))
    )
    return line


def _list(app: App) -> Callable[..., None]:
    def list_letters(
        service: Service = None,
        handler: Handler = None,
        type: Type = None,
        reason: Reason = None,
        older_than: Older = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one array of objects.")] = False,
    ) -> None:
        """List open letters, and how many there are of each exception and place."""
        found = asyncio.run(_found(app, _chosen((), service, handler, type, reason, older_than)))
        if as_json:
            sys.stdout.write(json.dumps([dict(letter.as_json()) for letter in found], indent=2) + "\n")
        else:
            screen.show_list(found)

    return list_letters


def _show(app: App) -> Callable[..., None]:
    def show(id: Annotated[str, typer.Argument(help="A letter, as `list` shows it.")], service: Service = None) -> None:
        """Show everything about one letter."""
        for letter in asyncio.run(_found(app, _chosen((id,), service), every=True)):
            screen.show_one(letter)

    return show


def _acting(app: App, verb: str, act: Callable[[DeadLetters, Letter], Awaitable[None]]) -> Callable[..., None]:
    def acting(
        ids: Ids = None,
        service: Service = None,
        handler: Handler = None,
        type: Type = None,
        reason: Reason = None,
        older_than: Older = None,
        yes: Yes = False,
    ) -> None:
        chosen = _chosen(ids or (), service, handler, type, reason, older_than)
        asyncio.run(_each(app, chosen, verb, act, yes))

    return acting


async def _found(app: App, chosen: Chosen, *, every: bool = False) -> list[Letter]:
    async with _dead_letters() as dead:
        found = await _matching(app, dead, chosen)
    if every:
        _require(chosen, found)
    return found


async def _each(
    app: App, chosen: Chosen, verb: str, act: Callable[[DeadLetters, Letter], Awaitable[None]], yes: bool
) -> None:
    async with _dead_letters() as dead:
        found = await _matching(app, dead, chosen)
        _require(chosen, found)
        if not found:
            typer.echo(f"nothing to {verb}: no letter matches")
            return
        if not yes and (len(found) > 1 or not chosen.ids):
            await asyncio.to_thread(_confirm, verb, found)
        for letter in found:
            await act(dead, letter)
        typer.echo(f"{verb}: {len(found)} done")


async def _matching(app: App, dead: DeadLetters, chosen: Chosen) -> list[Letter]:
    services = [service.name for service in app.chosen(*((chosen.service,) if chosen.service else ()))]
    return [letter for service in services async for letter in dead.browse(service) if chosen.fits(letter)]


def _require(chosen: Chosen, found: Sequence[Letter]) -> None:
    for id in sorted(chosen.ids):
        fitting = [screen.name(letter) for letter in found if id in (letter.id, screen.name(letter))]
        if not fitting:
            raise LookupError(f"there is no open dead letter {id}; `dead list` shows those there are")
        if len(fitting) > 1:
            raise ConfigurationError(f"{id} names {len(fitting)} letters: {', '.join(fitting)}; give one")


def _confirm(verb: str, found: Sequence[Letter]) -> None:
    places = Counter(f"{letter.service}.{letter.handler}" for letter in found)
    told = ", ".join(f"{count} of {escape(place)}" for place, count in places.most_common())
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{verb} {len(found)} letters ({told})? This is no terminal to ask at: add --yes")
    typer.confirm(f"{verb} {len(found)} letters ({told})?", abort=True)


def _chosen(
    ids: Sequence[str],
    service: str | None = None,
    handler: str | None = None,
    type: str | None = None,
    reason: str | None = None,
    older: str | None = None,
) -> Chosen:
    return Chosen(frozenset(ids), service, handler, type, reason, _span(older))


def _span(text: str | None) -> timedelta | None:
    if text is None:
        return None
    if (read := re.fullmatch(r"(\d{1,9})([smhd])", text)) is None:
        raise ConfigurationError(f"--older-than {text!r}: it takes a number and s, m, h or d, such as 30m or 7d")
    return timedelta(**{UNITS[read[2]]: int(read[1])})


@asynccontextmanager
async def _dead_letters() -> AsyncIterator[DeadLetters]:
    settings = environment.read()
    if not settings.url:
        raise ConfigurationError("dead letters are at a broker: set BUS_URL, such as amqp://guest:guest@localhost/")
    async with client.transport(settings) as transport:
        yield transport.dead_letters
