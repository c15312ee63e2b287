"""`dead edit`: the body of a dead letter in the editor, and what was saved to the handler that gave up on it."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import typer

from .. import settings as environment
from ..app import App
from ..errors import ConfigurationError, MessageTooLarge, Undecodable
from ..event import decode
from ..message import Message
from ..outcome import Letter
from . import temporary
from .acting import confirmed
from .broker import dead_letters
from .choice import name, one, require_type
from .errors import tell
from .indented import indented


def edit(app: App, id: str, service: str | None) -> None:
    """Have the body edited, and send it if it was changed and fits the event."""
    program = _editor()
    letter = asyncio.run(_letter(app, id, service))
    require_type(app, letter, f"{letter.service}.{letter.handler}")
    before = _pretty(letter)
    file = _written(before)
    try:
        after = _edited(app, letter, program, file, before)
        sent = None if after is None else asyncio.run(_send(app, letter, after))
    except BaseException:
        if _read(file) not in (before, None):
            tell(f"what you wrote is kept in {file}")
        else:
            file.unlink(missing_ok=True)
        raise
    file.unlink(missing_ok=True)
    if sent is None:
        typer.echo("nothing was changed: the letter stays as it is")
    else:
        typer.echo(f"edit: {name(letter)} was sent to {letter.service}.{letter.handler} as {sent.id}")


def _editor() -> list[str]:
    variable = "VISUAL" if os.environ.get("VISUAL") else "EDITOR"
    told = os.environ.get(variable, "")
    try:
        program = shlex.split(told)
    except ValueError as error:
        raise ConfigurationError(f'{variable}="{told}": {error}; it is read as a shell reads a command') from error
    if not program:
        raise ConfigurationError("there is no editor to open: set VISUAL or EDITOR, such as EDITOR=vi")
    return program


async def _letter(app: App, id: str, service: str | None) -> Letter:
    async with dead_letters() as dead:
        return await one(app, dead, id, service)


async def _send(app: App, letter: Letter, body: bytes) -> Message:
    async with dead_letters() as dead:
        return await dead.edit(letter, body)


def _edited(app: App, letter: Letter, program: list[str], file: Path, before: bytes) -> bytes | None:
    """Return the body that was saved, None where it is the old one; asks for another try on a terminal."""
    while True:
        try:
            done = subprocess.run([*program, str(file)], check=False)  # noqa: S603
        except OSError as error:
            raise ConfigurationError(f"the editor {program[0]!r} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise ConfigurationError(f"the editor ended with code {done.returncode}: nothing was sent")
        if (saved := _read(file)) is None:
            raise ConfigurationError(f"the editor left no file {file}: nothing was sent")
        after = saved.strip()
        if not after or _same(before, after):
            return None
        try:
            _check(app, letter, after)
        except (Undecodable, MessageTooLarge) as error:
            tell(str(error))
            if not sys.stdin.isatty() or not confirmed("edit it again?"):
                raise ConfigurationError("nothing was sent") from error
        else:
            return after


def _written(body: bytes) -> Path:
    """Return a new file with the body, readable by its owner only."""
    handle, path = tempfile.mkstemp(prefix="dead-letter-", suffix=".json", dir=temporary.folder())
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
    except BaseException:
        Path(path).unlink()
        raise
    return Path(path)


def _read(file: Path) -> bytes | None:
    """Return what is in the file; None where the editor removed it."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _check(app: App, letter: Letter, body: bytes) -> None:
    """Raise Undecodable, with every wrong field, where the body is not the event that the message says it is."""
    message, limit = letter.message, environment.read().max_message_bytes
    if len(body) > limit:
        raise MessageTooLarge(message.type, len(body), limit)
    if (cls := app.events.get(message.type)) is not None:
        decode(cls, body, message.version)
    elif indented(message.body) is not None and indented(body) is None:
        raise Undecodable("it was JSON, and is not any more")


def _pretty(letter: Letter) -> bytes:
    body = letter.message.body
    if (shown := indented(body)) is not None:
        return shown.encode() + b"\n"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name(letter)}: its body is no text, which no editor can show") from error
    return body


def _same(before: bytes, after: bytes) -> bool:
    one, other = indented(before), indented(after)
    return before.strip() == after if one is None or other is None else one == other
