"""`dead`: the dead letters of services; list, show, replay, edit, discard, export, import, compact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, get_args

import typer

from ..app import App
from ..errors import ConfigurationError
from ..outcome import Letter, Reason
from ..settings import check_name
from ..topic import matches_any
from ..transport import DeadLetters, Subscription
from . import acting, editing, moving
from . import letters as screen
from .binding import bound
from .broker import dead_letters
from .choice import Choice, choice, matching, one, require_type
from .errors import FAILED, tell
from .span import rate as seconds_apart


ServiceOption = Annotated[
    str | None, typer.Option("--service", help="Of this service only; it may be gone from the code.")
]
HandlerOption = Annotated[str | None, typer.Option("--handler", help="Of this handler only.")]
TypeOption = Annotated[str | None, typer.Option("--type", help="Of events of this type only.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help=f"With this reason only: {', '.join(get_args(Reason))}.")
]
OlderOption = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        help="That last failed longer ago than this, such as 30m, 2h or 7d; none whose time is not known.",
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one array of objects.")]
ClosedOption = Annotated[bool, typer.Option("--closed", help="Show closed letters too, until they are erased.")]
ToOption = Annotated[str | None, typer.Option("--to", help="To this handler instead: SERVICE.HANDLER.")]
RateOption = Annotated[str | None, typer.Option("--rate", help="At most so many, such as 50/s or 100/m.")]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The file; - is standard output or input.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A letter, as `list` shows it.")]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Letters, as `list` shows them; none means all that match."),
]


def command_line(app: App) -> typer.Typer:
    """Return the commands for dead letters."""
    line = typer.Typer(
        help="Dead letters: list, show, replay, edit, discard, export, import, compact.", no_args_is_help=True
    )
    named: dict[str, Callable[..., object]] = {"list": list_letters, "import": import_letters}
    named |= {command.__name__: command for command in (show, replay, edit, discard, export, compact)}
    for name, command in named.items():
        line.command(name)(bound(command, app))
    return line


def list_letters(
    app: App,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    closed: ClosedOption = False,
    as_json: JsonOption = False,
) -> None:
    """List open letters, and how many there are of each exception and place."""
    asyncio.run(_list(app, choice((), service, handler, type, reason, older_than), closed=closed, as_json=as_json))


async def _list(app: App, chosen: Choice, *, closed: bool, as_json: bool) -> None:
    listing, before = screen.Listing(), "["
    async with dead_letters() as dead:
        async for letter in matching(app, dead, chosen, closed=closed):
            if as_json:
                typer.echo(
                    before + "\n  " + json.dumps(dict(letter.as_json()), indent=2).replace("\n", "\n  "), nl=False
                )
                before = ","
            else:
                listing.add(letter)
    if before == "[" and not listing.count:
        chosen.require(app, ())
    if as_json:
        typer.echo("[]" if before == "[" else "\n]")
    else:
        screen.show_list(listing, chosen.services(app))


def show(app: App, id: IdArgument, service: ServiceOption = None) -> None:
    """Show everything about one letter, closed ones included, and what was done about it."""
    screen.show_one(asyncio.run(_one(app, id, service)))


async def _one(app: App, id: str, service: str | None) -> Letter:
    async with dead_letters() as dead:
        return await one(app, dead, id, service, closed=True)


def replay(
    app: App,
    ids: IdsArgument = None,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
    to: ToOption = None,
    rate: RateOption = None,
    yes: YesOption = False,
) -> int:
    """Send letters back to the handlers that gave up on them, as attempt 1. Ctrl-C stops after the one under way."""
    chosen = choice(ids, service, handler, type, reason, older_than)
    pause = 0.0 if rate is None else seconds_apart("--rate", rate)
    target = None if to is None else _subscription(app, to)

    async def send(dead: DeadLetters, letter: Letter) -> None:
        own, type = f"{letter.service}.{letter.handler}", letter.message.type
        if type and target is not None and target.patterns and not matches_any(target.patterns, type):
            wanted = ", ".join(target.patterns)
            raise LookupError(f"{target.name} does not handle {type!r}; it handles {wanted}")
        place = own if target is None else target.name
        require_type(app, letter, place)
        await dead.replay(letter, to=None if place == own else place)

    return asyncio.run(acting.act(app, chosen, "replay", send, yes=yes, pause=pause))


def _subscription(app: App, to: str) -> Subscription:
    """Return the subscription that letters are sent to, and tell what it is."""
    known = {h.subscription_name: h.subscription(app.events) for s in app.services for h in s.handlers}
    if (found := known.get(to)) is None:
        raise ConfigurationError(f"--to {to!r}: there is no such handler; there are {', '.join(known)}")
    sources = [*found.patterns, *(f"queue {name}" for name in found.sources)]
    tell(f"to {to}, which handles {', '.join(sources)}")
    return found


def edit(app: App, id: IdArgument, service: ServiceOption = None) -> None:
    """Open a letter's body in $VISUAL or $EDITOR; what was saved goes to its handler, the letter stays as it was."""
    editing.edit(app, id, service)


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
    """Close letters for good; `compact` erases them."""
    chosen = choice(ids, service, handler, type, reason, older_than)
    return asyncio.run(acting.act(app, chosen, "discard", lambda dead, letter: dead.discard(letter), yes=yes))


def export(
    app: App,
    file: FileArgument,
    ids: IdsArgument = None,
    service: ServiceOption = None,
    handler: HandlerOption = None,
    type: TypeOption = None,
    reason: ReasonOption = None,
    older_than: OlderOption = None,
) -> None:
    """Write open letters to a file, one line of JSON each, with all that `import` needs. They stay open."""
    moving.export(app, file, choice(ids, service, handler, type, reason, older_than))


def import_letters(file: FileArgument) -> int:
    """Keep the letters of a file as open ones, here or on another broker; what is open already is left out."""
    return moving.restore(file)


def compact(
    service: Annotated[str, typer.Argument(help="The service; it may be gone from the code.")], yes: YesOption = False
) -> int:
    """Erase the closed letters of a service for good. It may be cut off at any moment, and run again."""
    check_name("service", service)
    if not yes and not acting.confirmed(f"erase the closed dead letters of {service} for good?"):
        tell("nothing was erased: compact was not confirmed")
        return FAILED
    left, erased = asyncio.run(_compact(service))
    typer.echo(f"compact: {erased} closed letters of {service} are erased, {left} open ones are left")
    return 0


async def _compact(service: str) -> tuple[int, int]:
    async with dead_letters() as dead:
        return await dead.compact(service)
