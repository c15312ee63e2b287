"""From a plain function to a command: it is given the app, awaited if need be, and its mistakes are explained."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import Any, Final

import typer

from .. import settings
from ..app import App
from ..errors import ConfigurationError
from .errors import explained


UNNAMED: Final = (Parameter.POSITIONAL_ONLY, Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def bound(command: Callable[..., Any], app: App) -> Callable[..., None]:
    """Return the command as Typer takes it, without its first parameter if that is called `app`.

    A coroutine is run; a whole number that is returned is the exit code. Raises ConfigurationError where an annotation
    cannot be read, and for a parameter that cannot be given by its name.
    """
    try:
        signature = inspect.signature(command, eval_str=True)
    except NameError as error:
        raise ConfigurationError(
            f"command {command.__name__}: {error}; its annotations are read when the program runs, so import their "
            "names at the top of the module, not under `if TYPE_CHECKING`"
        ) from error
    parameters = list(signature.parameters.values())
    takes_app = bool(parameters) and parameters[0].name == "app"
    kept = parameters[takes_app:]
    if unnamed := [each for each in kept if each.kind in UNNAMED]:
        raise ConfigurationError(
            f"command {command.__name__}: {str(unnamed[0]).partition(':')[0]} is not given by its name; write each "
            "parameter by itself, without `/`, `*` or `**`, and several values as one, such as `orders: list[str]`"
        )
    given = (app,) if takes_app else ()

    def work(options: dict[str, Any]) -> object:
        settings.read()  # whatever a command needs of them: a wrong value stops it
        returned = command(*given, **options)
        done = asyncio.run(returned) if inspect.iscoroutine(returned) else returned
        # here, so that a reader that has gone is noticed while somebody can still keep quiet about it
        typer.echo(nl=False)
        return done

    @wraps(command)
    def call(**options: Any) -> None:
        raise typer.Exit(explained(lambda: work(options)))

    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return call
