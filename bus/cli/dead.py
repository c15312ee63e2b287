"""`dead`: the dead letters of services; list, show, replay, discard."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

import typer

from .. import client, logs
from .. import settings as environment
from ..app import App
from ..errors import ConfigurationError
from ..outcome import Letter, Reason
from ..transport import DeadLetters
from . import letters as screen
from .binding import bound
from .choice import Choice, choice, find, name
from .errors import FAILED, code_of, tell


ServiceOption = Annotated[str | None, typer.Option("--service", help="Of this service only.")]
HandlerOption = Annotated[str | None, typer.Option("--handler", help="Of this handler only.")]
TypeOption = Annotated[str | None, typer.Option("--type", help="Of events of this type only.")]
ReasonOption = Annotated[Reason | None, typer.Option("--reason", help="With this reason only.")]
OlderOption = Annotated[
    str | None, typer.Option("--older-than", help="That last failed longer ago than this, such as 30m, 2h or 7d.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one array of objects.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A letter, as `list` shows it.")]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Letters, as `list` shows them; none means all that match."),
]
Action: TypeAlias = Callable[[DeadLetters, Letter], Awaitable[None]]


def command_line(app: App) -> typer.Typer:
    """Return the commands for dead letters."""
    line = typer.Typer(help="Dead letters: list, show, replay, discard.", no_args_is_help=True)
    line.command("list")(bound(list_letters, app))
    for command in (show, replay, discard):
        line.command(command.__name__)(bound(command, app))
    return line


def list_letters(
    app: App,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    as_json: JsonOption = False,
) -> None:
    """List open letters, and how many there are of each exception and place."""
    found = asyncio.run(_found(app, choice((), service, handler, type, reason, older_than)))
    if as_json:
        typer.echo(json.dumps([dict(letter.as_json()) for letter in found], indent=2))
    else:
        screen.show_list(found)


def show(app: App, id: IdArgument, service: ServiceOption = None) -> None:
    """Show everything about one letter."""
    for letter in asyncio.run(_found(app, Choice(frozenset({id}), service))):
        screen.show_one(letter)


def replay(
    app: App,
    ids: IdsArgument = None,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    yes: YesOption = False,
) -> int:
    """Send letters back to the handlers that gave up on them, as attempt 1."""
    chosen = choice(ids, service, handler, type, reason, older_than)
    return asyncio.run(_act(app, chosen, "replay", lambda dead, letter: dead.replay(letter), yes=yes))


def discard(
    app: App,
    ids: IdsArgument = None,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    yes: YesOption = False,
) -> int:
    """Close letters for good."""
    chosen = choice(ids, service, handler, type, reason, older_than)
    return asyncio.run(_act(app, chosen, "discard", lambda dead, letter: dead.discard(letter), yes=yes))


async def _found(app: App, chosen: Choice) -> list[Letter]:
    async with _dead_letters() as dead:
        return await find(app, dead, chosen)


async def _act(app: App, chosen: Choice, verb: str, action: Action, *, yes: bool) -> int:
    async with _dead_letters() as dead:
        found = await find(app, dead, chosen)
        if not found:
            typer.echo(f"nothing to {verb}: no open letter matches")
            return 0
        # a letter that is named is meant; what filters find may be more than whoever wrote them thinks
        if (len(found) > 1 or not chosen.ids) and not yes and not _confirmed(verb, found):
            tell(f"no letter was touched: {verb} was not confirmed")
            return FAILED
        return await _each(dead, found, verb, action)


def _confirmed(verb: str, found: Sequence[Letter]) -> bool:
    places = Counter(f"{letter.service}.{letter.handler}" for letter in found)
    told = ", ".join(f"{count} of {place}" for place, count in places.most_common())
    question = logs.escape(f"{verb} {len(found)} dead letters ({told})?")
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask at: add --yes")
    try:
        with _interruptible():
            return typer.confirm(question, err=True)
    except typer.Abort as stopped:
        raise KeyboardInterrupt from stopped


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a question at once: the event loop, which stands still meanwhile, would not hear of it."""
    loops = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, loops)


async def _each(dead: DeadLetters, found: Sequence[Letter], verb: str, action: Action) -> int:
    """Act on one letter after the other, and tell how many were done, also where that is not all of them."""
    done = 0
    try:
        for letter in found:
            try:
                await action(dead, letter)
                done += 1
            except Exception as error:
                if code_of(error) != FAILED:
                    raise
                tell(f"{name(letter)}: {error}")
    finally:
        typer.echo(f"{verb}: {done} of {len(found)} done")
    return 0 if done == len(found) else FAILED


@asynccontextmanager
async def _dead_letters() -> AsyncIterator[DeadLetters]:
    settings = environment.read()
    if not settings.url or urlsplit(settings.url).scheme == "memory":
        raise ConfigurationError(
            "dead letters are kept by a broker: set BUS_URL, such as amqp://guest:guest@localhost/"
        )
    # what the broker refuses is told by the command itself
    logs.configure("error", "text")
    async with client.transport(settings) as transport:
        yield transport.dead_letters
