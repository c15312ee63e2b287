"""`publish`: events of one type from the argument, a file or standard input, one per line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..app import App
from ..errors import ConfigurationError, Undecodable
from ..event import Event, decode


def publish(
    app: App,
    type: Annotated[str, typer.Argument(help="The event's type, such as order.placed.")],
    body: Annotated[str, typer.Argument(metavar="[JSON]", help="The event; - or nothing reads standard input.")] = "-",
    file: Annotated[Path | None, typer.Option(help="Read the events from this file.")] = None,
    delay: Annotated[float, typer.Option(help="Seconds to wait before it is delivered.")] = 0,
    required: Annotated[bool, typer.Option(help="Fail if nobody subscribes to it.")] = False,
    to: Annotated[str | None, typer.Option(help="Send it to this queue only.")] = None,
    id: Annotated[str | None, typer.Option(help="Publish one event again with the id that it had.")] = None,
) -> None:
    """Publish one event, or one per line, and print the ids. Nothing is published if any line is wrong."""
    cls = app.events.get(type)
    if cls is None:
        raise ConfigurationError(f"there is no event of type {type!r}; there are {', '.join(sorted(_types(app)))}")
    events = _decoded(cls, _text(body, file))
    for each in asyncio.run(_send(app, events, delay, required, to, id)):
        sys.stdout.write(f"{each}\n")


async def _send(
    app: App, events: list[Event], delay: float, required: bool, to: str | None, id: str | None
) -> list[str]:
    async with app.connect() as bus:
        return await bus.publish(*events, delay=delay, required=required, to=to, id=id)


def _types(app: App) -> list[str]:
    return [str(cls.__schema__.type) for cls in app.events]


def _text(body: str, file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--file: {error}") from error
    return sys.stdin.read() if body == "-" else body


def _decoded(cls: type[Event], text: str) -> list[Event]:
    try:
        return [decode(cls, text.encode())]
    except Undecodable as whole:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2 or not all(line.strip()[0] == "{" and line.strip()[-1] == "}" for _, line in lines):
            raise ConfigurationError(str(whole)) from whole
    events, problems = [], []
    for number, line in lines:
        try:
            events.append(decode(cls, line.encode()))
        except Undecodable as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ConfigurationError(*problems)
    return events
