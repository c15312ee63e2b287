"""`publish`: events of one type from the argument, a file or standard input, one per line."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer

from .. import logs
from .. import settings as environment
from ..app import App
from ..errors import ConfigurationError, Fate, PublishError, Undecodable
from ..event import Event, decode
from .errors import tell
from .span import span


MOST_TOLD: Final = 20
"""Ids that a failed publish names one by one."""


def publish(
    app: App,
    type: Annotated[str, typer.Argument(help="The event's type, such as order.placed.")],
    body: Annotated[
        str | None, typer.Argument(metavar="[JSON]", help="The event; - or nothing reads standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Read the events from this file.")] = None,
    delay: Annotated[
        str, typer.Option(help="How long to wait before it is delivered: seconds, or as 30m or 2h.")
    ] = "0",
    required: Annotated[bool, typer.Option("--required", help="Fail if nobody subscribes to it.")] = False,
    to: Annotated[str | None, typer.Option(help="Send it to this queue only.")] = None,
    id: Annotated[str | None, typer.Option(help="Publish one event again with the id that it had.")] = None,
) -> None:
    """Publish one event, or one per line, and print the ids. Nothing is published if any line is wrong."""
    _require_a_bus()
    cls = app.events.get(type)
    if cls is None:
        known = ", ".join(sorted(str(cls.__schema__.type) for cls in app.events))
        raise ConfigurationError(f"there is no event of type {type!r}; there are {known}")
    wait = span("--delay", delay)
    events = _decoded(cls, _input(body, file))
    # the broker's troubles are told while it is waited for
    logs.configure("warning", "text")
    try:
        ids = asyncio.run(_send(app, events, wait, required, to, id))
    except PublishError as error:
        _tell_fates(error)
        raise
    typer.echo("\n".join(ids))


def _require_a_bus() -> None:
    settings = environment.read()
    if not settings.url or settings.scheme == "memory":
        raise ConfigurationError(
            "there is no bus to publish to: set BUS_URL, such as amqp://guest:guest@localhost/ "
            "(a memory bus would be gone with this command)"
        )


async def _send(
    app: App, events: list[Event], delay: timedelta, required: bool, to: str | None, id: str | None
) -> list[str]:
    async with app.connect() as bus:
        return await bus.publish(*events, delay=delay, required=required, to=to, id=id)


def _tell_fates(error: PublishError) -> None:
    """Print the ids of what is stored all the same, and tell the others."""
    others = [f"{id} {fate.value}" for id, fate in error.fates.items() if fate is not Fate.STORED]
    for id, fate in error.fates.items():
        if fate is Fate.STORED:
            typer.echo(id)
    if len(error.fates) > 1:
        tell("\n".join(others[:MOST_TOLD]))
        if len(others) > MOST_TOLD:
            tell(f"and {len(others) - MOST_TOLD} more")


def _input(body: str | None, file: Path | None) -> bytes:
    if file is not None:
        if body is not None:
            raise ConfigurationError("publish takes the events from the argument or from --file, not from both")
        try:
            return file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"--file: {error}") from error
    if body not in (None, "-"):
        return os.fsencode(body)
    if sys.stdin.isatty():
        tell("reading events from standard input, one per line, until Ctrl-D")
    return sys.stdin.buffer.read()


def _decoded(cls: type[Event], raw: bytes) -> list[Event]:
    """Return the events of one JSON document, or of a JSON document per line."""
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise ConfigurationError("there is no event to publish: the input is empty")
    if _is_object(raw) or not (len(lines) > 1 and any(_is_object(line) for _, line in lines)):
        return [decode(cls, raw)]
    events, problems = [], []
    for number, line in lines:
        try:
            events.append(decode(cls, line))
        except Undecodable as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ConfigurationError(*problems, "nothing was published")
    return events


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(orjson.loads(raw), dict)
    except orjson.JSONDecodeError:
        return False
