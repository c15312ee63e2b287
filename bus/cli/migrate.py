"""`topology migrate`: moves a subscription's queue to the arguments that the code declares."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import typer

from ..app import App
from ..errors import BusUnavailable, ConfigurationError
from ..topology import Migration
from ..transport import Subscription
from . import acting
from .broker import broker
from .errors import FAILED, tell


NameArgument = Annotated[str, typer.Argument(metavar="SERVICE.HANDLER", help="The handler whose queue is moved.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
ABSENT: Final = "none"
LINE_EACH: Final = 10_000
"""Messages after which a line is written."""


def migrate(app: App, name: NameArgument, yes: YesOption = False) -> int:
    """Move a handler's queue to the arguments that the code declares, with all messages; asks first.

    It may be cut off at any moment, and run again: it goes on from there.
    """
    return asyncio.run(_migrate(app, _subscription(app, name), yes=yes))


def _subscription(app: App, name: str) -> Subscription:
    every = [handler.subscription(app.events) for service in app.services for handler in service.handlers]
    for subscription in every:
        if subscription.name == name:
            return subscription
    known = ", ".join(sorted(subscription.name for subscription in every))
    raise ConfigurationError(f"there is no handler {name!r}; there are {known}")


async def _migrate(app: App, subscription: Subscription, *, yes: bool) -> int:
    async with broker("topology migrate moves a queue at a broker") as transport:
        plan = await transport.topology.migration(app.name, subscription)
        for line in _told(plan):
            typer.echo(line)
        if not yes and not acting.confirmed(f"move {plan.queue} to these arguments?"):
            tell("nothing was moved: migrate was not confirmed")
            return FAILED
        shown = Shown()
        try:
            moved = await transport.topology.migrate(app.name, subscription, shown)
        except BaseException as error:
            # that it is begun may be stored before it is told
            if not shown.begun and not isinstance(error, BusUnavailable | asyncio.CancelledError):
                raise
            tell("migrate was cut off: run it again, and it goes on; until then the handler stands still")
            raise
    typer.echo(f"migrate: {plan.queue} has the arguments that the code declares; {moved} messages were moved")
    return 0


def _told(plan: Migration) -> list[str]:
    lines = [f"{plan.queue}: {plan.messages} messages, {plan.consumers} consumers"]
    if plan.resumed:
        lines.append("a migration of it was begun and not ended: this goes on with it")
    if plan.why:
        lines.append(f"the broker says: {plan.why}")
    for name in sorted({*plan.before, *plan.after}):
        was, will = plan.before.get(name, ABSENT), plan.after.get(name, ABSENT)
        if not plan.before or was != will:
            lines.append(f"  {name}: {_change(plan, was, will)}")
    lines.append("its handler stands still until this is done; what is published meanwhile waits")
    return lines


def _change(plan: Migration, was: Any, will: Any) -> str:
    return f"{was} -> {will}" if plan.before else f"-> {will}"


class Shown:
    """Tells each step once, and now and then how many messages were moved in it."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._moved = 0

    @property
    def begun(self) -> bool:
        """Whether any step was told."""
        return bool(self._told)

    def __call__(self, what: str, moved: int) -> None:
        """Tell a step, or how far it is."""
        if what not in self._told:
            self._told.add(what)
            self._moved = moved
            tell(f"migrate: {what}")
        elif moved - self._moved >= LINE_EACH:
            self._moved = moved
            tell(f"migrate: {what}: {moved} messages")
