"""The command line of an app: one file per command, and the exit codes in `errors.py`."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import typer

from ..app import App
from . import dead, publish, run, services
from .errors import explained


def main(app: App) -> None:
    """Run the app's command line with this process's arguments, and exit with its code."""
    sys.exit(explained(command_line(app)))


def command_line(app: App) -> typer.Typer:
    """Return the command line of an app: Tidegate's commands, and the app's own."""
    line = typer.Typer(
        name=app.name,
        help=f"The {app.name} app. Without a command it is the worker of all services.",
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )

    @line.callback()
    def worker(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            run.run(app)

    line.command("run")(_bound(run.run, app))
    line.command("publish")(_bound(publish.publish, app))
    line.command("services")(_bound(services.services, app))
    line.add_typer(dead.command_line(app), name="dead")
    for command in app.commands:
        line.command(command.__name__.replace("_", "-"))(_bound(command, app))
    return line


def _bound(command: Callable[..., Any], app: App) -> Callable[..., None]:
    """Return the command without its `app` parameter; a coroutine is run, a number returned is the exit code."""
    signature = inspect.signature(command)
    takes_app = "app" in signature.parameters
    call = partial(command, app) if takes_app else command

    @wraps(command)
    def bound(*arguments: Any, **options: Any) -> None:
        code = call(*arguments, **options)
        if inspect.iscoroutine(code):
            code = asyncio.run(code)
        if isinstance(code, int) and code:
            raise typer.Exit(code)

    kept = [parameter for name, parameter in signature.parameters.items() if name != "app"]
    hints = inspect.get_annotations(command, eval_str=True)
    bound.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[parameter.replace(annotation=hints.get(parameter.name, Any)) for parameter in kept]
    )
    bound.__annotations__ = {parameter.name: hints.get(parameter.name, Any) for parameter in kept}
    return bound
