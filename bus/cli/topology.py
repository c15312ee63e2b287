"""`topology`: what is declared at the broker; show, apply, prune."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Final

import typer

from .. import settings as environment
from ..app import App
from ..errors import AccessRefused, ConfigurationError
from ..logs import escape
from ..topology import SHARED, Part, Pruned, Survey, going
from ..transport import Subscription
from . import acting, mermaid, migrate, tree
from .binding import bound
from .broker import broker, opened
from .errors import FAILED, code_of, tell


JsonOption = Annotated[bool, typer.Option("--json", help="Print one object.")]
MermaidOption = Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
MessagesOption = Annotated[
    bool, typer.Option("--with-messages", help="Remove queues that have messages too, and the messages with them.")
]
ConsumersOption = Annotated[
    bool, typer.Option("--with-consumers", help="Remove queues that somebody consumes too, such as an old replica.")
]
MOST_TOLD: Final = 50
NOTHING_LEFT: Final = "nothing is left over"
COUNTED: Final = {"binding": "bindings", "queue": "queues", "step": "retry steps", "exchange": "exchanges"}


def command_line(app: App) -> typer.Typer:
    """Return the commands for the topology."""
    line = typer.Typer(
        help="What is declared at the broker: show, apply, prune, migrate. Without a command it shows.",
        invoke_without_command=True,
    )
    shown = bound(show, app)

    @line.callback()
    def without_command(context: typer.Context, as_mermaid: MermaidOption = False, as_json: JsonOption = False) -> None:
        told = {"as_mermaid": as_mermaid, "as_json": as_json}
        if context.invoked_subcommand is None:
            shown(**told)
        elif context.invoked_subcommand == show.__name__:
            context.default_map = {show.__name__: told}
        elif as_mermaid or as_json:
            raise typer.BadParameter("--json and --mermaid are options of show")

    for command in (show, apply, prune, migrate.migrate):
        line.command(command.__name__)(bound(command, app))
    return line


def subscriptions(app: App) -> list[Subscription]:
    """Return every subscription of the app."""
    return [handler.subscription(app.events) for service in app.services for handler in service.handlers]


def show(app: App, as_mermaid: MermaidOption = False, as_json: JsonOption = False) -> None:
    """Show what the code declares, what other versions declared, and what is left over, with messages."""
    if as_mermaid and as_json:
        raise ConfigurationError("topology show prints --mermaid or --json, not both")
    found = asyncio.run(_survey(app))
    if as_json:
        typer.echo(json.dumps(dict(found.as_json()), indent=2))
    elif as_mermaid:
        typer.echo(mermaid.flowchart(found))
    else:
        tree.show(found)


async def _survey(app: App) -> Survey:
    settings = environment.read()
    async with opened(settings if settings.url else replace(settings, url="memory://")) as transport:
        return await transport.topology.survey(app.name, subscriptions(app))


def apply(app: App) -> int:
    """Declare everything that the code needs, and consume nothing: a step of a deployment."""
    return asyncio.run(_apply(app))


async def _apply(app: App) -> int:
    wanted = subscriptions(app)
    async with broker("topology apply declares at a broker") as transport:
        before = await transport.topology.survey(app.name, wanted)
        faults = await transport.topology.apply(app.name, wanted)
        after = await transport.topology.survey(app.name, wanted)
    missing = {(part.kind, part.name) for part in before.missing}
    there = [part for part in after.declared if part.there is not False]
    new = [part for part in there if (part.kind, part.name) in missing]
    _tell_some(f"declared {tree.told(part)}" for part in new)
    typer.echo(f"apply: {len(there)} of {len(after.declared)} are there, {len(new)} of them new")
    if after.left:
        typer.echo(f"left over are {_counted(after.left)}; `topology prune` removes them")
    for fault in faults:
        tell(str(fault))
    return next((code for fault in faults if (code := code_of(fault)) is not None), 0)


def prune(
    app: App, with_messages: MessagesOption = False, with_consumers: ConsumersOption = False, yes: YesOption = False
) -> int:
    """Remove what is left over: stale bindings, empty queues and steps that no handler has. Asks first."""
    return asyncio.run(_prune(app, messages=with_messages, consumers=with_consumers, yes=yes))


async def _prune(app: App, *, messages: bool, consumers: bool, yes: bool) -> int:
    wanted = subscriptions(app)
    async with broker("topology prune removes from a broker") as transport:
        found = await transport.topology.survey(app.name, wanted)
        if found.refused:
            raise AccessRefused(f"{found.trouble}, so nothing is removed")
        if found.trouble:
            tell(found.trouble)
        meant = going(found.left, lambda part: _meant(part, messages=messages, consumers=consumers))
        for part in found.left:
            held = part if part.held or part.kind not in SHARED else replace(part, held="service")
            verb, more = ("would remove", tree.by(part)) if part in meant else ("keeps", tree.why(held))
            typer.echo(escape(f"{verb} {tree.told(part)}{more}"))
        if not meant:
            typer.echo(f"prune: {NOTHING_LEFT if not found.left else 'nothing that is left over may be removed'}")
            return 0
        if not yes and not acting.confirmed(f"remove {_counted(meant)} at {found.broker}{_losing(meant)}?"):
            tell("nothing was removed: prune was not confirmed")
            return FAILED
        done = await transport.topology.prune(app.name, wanted, meant, messages=messages, consumers=consumers)
    return _tell_pruned(meant, done)


def _meant(part: Part, *, messages: bool, consumers: bool) -> bool:
    if part.kind in ("queue", "step") and part.messages and not messages:
        return False
    return part.held in ("", "messages") or (part.held == "consumers" and consumers)


def _losing(parts: Sequence[Part]) -> str:
    count = sum(part.messages for part in parts if part.kind in ("queue", "step"))
    return f", and {count} messages with them" if count else ""


def _tell_pruned(meant: Sequence[Part], done: Sequence[Pruned]) -> int:
    gone = [each for each in done if not each.kept]
    _tell_some(f"removed {tree.told(each.part)}" for each in gone)
    for each in done:
        if each.kept:
            tell(f"kept {tree.told(each.part)}: {each.kept}")
    lost = sum(each.messages for each in gone)
    typer.echo(f"prune: {len(gone)} of {len(meant)} removed" + (f", and {lost} messages with them" if lost else ""))
    if len(done) < len(meant):
        tell(f"{len(meant) - len(done)} were not left over any more, or in use by then")
    return 0 if len(gone) == len(meant) else FAILED


def _counted(parts: Sequence[Part]) -> str:
    counts = Counter(COUNTED.get(part.kind, "streams") for part in parts)
    order = [what for what in (*COUNTED.values(), "streams") if counts[what]]
    return ", ".join(f"{counts[what]} {what if counts[what] > 1 else what.removesuffix('s')}" for what in order)


def _tell_some(lines: Iterable[str]) -> None:
    listed = list(lines)
    for line in listed[:MOST_TOLD]:
        typer.echo(escape(line))
    if len(listed) > MOST_TOLD:
        typer.echo(f"and {len(listed) - MOST_TOLD} more")
