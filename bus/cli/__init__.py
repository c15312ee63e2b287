"""The command line of an app: one file per command, and the exit codes in `errors.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import typer

from ..app import App
from ..errors import ConfigurationError
from . import dead, publish, run, services, streams, topology
from .binding import bound
from .errors import explained
from .leaving import flush


OWN: Final[dict[str, Callable[..., Any]]] = {
    "run": run.run,
    "publish": publish.publish,
    "services": services.services,
}
GROUPS: Final = {"dead": dead.command_line, "topology": topology.command_line}


def main(app: App) -> None:
    """Run the app's command line with this process's arguments, and exit with its code."""

    def work() -> None:
        command_line(app)()

    streams.prepare()
    try:
        sys.exit(explained(work))
    finally:
        flush()


def command_line(app: App) -> typer.Typer:
    """Return the command line of an app: Tidegate's commands, and the app's own.

    Raises ConfigurationError where two commands have one name.
    """
    line = typer.Typer(
        name=app.name,
        help=f"The {app.name} app. Without a command it is the worker of all services.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    worker = bound(run.run, app)

    @line.callback()
    def without_command(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            worker(service=None)

    for name, command in OWN.items():
        line.command(name)(bound(command, app))
    for name, group in GROUPS.items():
        line.add_typer(group(app), name=name)
    for name, command in _added(app).items():
        line.command(name)(bound(command, app))
    return line


def _added(app: App) -> dict[str, Callable[..., Any]]:
    added: dict[str, Callable[..., Any]] = {}
    for command in app.commands:
        own = getattr(command, "__name__", "")
        if not own.isidentifier():
            raise ConfigurationError(f"App(commands=…): {command!r} is no function with a name of its own; write one")
        name = own.replace("_", "-")
        if name in added or name in OWN or name in GROUPS:
            raise ConfigurationError(
                f"App(commands=…): there are two commands {name!r}; give the function another name"
            )
        added[name] = command
    return added
