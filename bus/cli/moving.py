"""`dead export` and `dead import`: letters as lines of JSON, from one broker to a file, and to this or another one."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import orjson
import typer

from ..app import App
from ..errors import ConfigurationError, MessageTooLarge
from ..packing import unpack
from ..settings import check_name
from . import temporary
from .broker import dead_letters
from .choice import Choice, matching, name
from .errors import FAILED, tell


STANDARD: Final = "-"
MOST_TOLD: Final = 20


def export(app: App, file: str, chosen: Choice) -> None:
    """Write the letters that are meant to a new file, or to standard output."""
    with _written(file) as lines:
        count = asyncio.run(_export(app, lines, chosen))
    tell(f"export: {count} letters")


async def _export(app: App, lines: IO[bytes], chosen: Choice) -> int:
    names = []
    async with dead_letters() as dead:
        async for letter in matching(app, dead, chosen):
            lines.write(orjson.dumps(await dead.packed(letter)) + b"\n")
            names.append(name(letter))
        chosen.require(app, names)
    return len(names)


def restore(file: str) -> int:
    """Keep every letter of the file as an open one, none where any line is wrong, and return the exit code."""
    with _read(file) as lines:
        problems = list(_problems(lines))
        if problems:
            more = [f"and {len(problems) - MOST_TOLD} more"] if len(problems) > MOST_TOLD else []
            raise ConfigurationError(*problems[:MOST_TOLD], *more, "no letter was imported")
        lines.seek(0)
        return asyncio.run(_restore(lines))


async def _restore(lines: IO[bytes]) -> int:
    restored = there = large = at = 0
    complete = False
    try:
        async with dead_letters() as dead:
            for number, packed in _objects(lines):
                at = number
                try:
                    if await dead.restore(str(packed["service"]), packed):
                        restored += 1
                    else:
                        there += 1
                except MessageTooLarge as error:
                    large += 1
                    tell(f"line {number}: {error}")
        complete = True
    finally:
        left_out = f"; {there} were open already" * bool(there) + f"; {large} too large for this broker" * bool(large)
        typer.echo(f"import: {restored} letters{left_out}")
        if not complete:
            tell(f"stopped at line {at}; to import the file again goes on: what is there is left out")
    return FAILED if large else 0


def _problems(lines: IO[bytes]) -> Iterator[str]:
    empty = True
    for number, line in enumerate(lines, 1):
        if line.strip():
            empty = False
            try:
                _check(orjson.loads(line))
            except (ValueError, ConfigurationError) as error:
                yield f"line {number}: {error}"
    if empty:
        yield "there is no letter in it"


def _check(packed: Any) -> None:
    if not isinstance(packed, dict):
        raise ValueError("it is no object")  # noqa: TRY004
    # the service may be gone from the code: the broker tells whether it has letters of it
    service = check_name("service", unpack(packed).service)
    if packed.get("service") != service:
        raise ValueError(f"its service is {packed.get('service')!r}, and that of its failure {service!r}")


def _objects(lines: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, orjson.loads(line)


@contextmanager
def _written(file: str) -> Iterator[IO[bytes]]:
    if file == STANDARD:
        yield sys.stdout.buffer
        # before it is told that they are exported
        sys.stdout.buffer.flush()
        return
    try:
        # bodies are nobody else's business
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{file}: {error.strerror}; export writes a new file, or - for standard output"
        ) from error
    try:
        with os.fdopen(handle, "wb") as lines:
            yield lines
    except BaseException:
        Path(file).unlink()
        tell(f"{file} is not complete, and was removed")
        raise


@contextmanager
def _read(file: str) -> Iterator[IO[bytes]]:
    """Open a file that can be read twice: first to see whether all of it is right."""
    if file == STANDARD:
        with _kept(sys.stdin.buffer) as kept:
            yield kept
        return
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise ConfigurationError(f"{file}: {error.strerror}") from error
        yield lines if lines.seekable() else stack.enter_context(_kept(lines))


@contextmanager
def _kept(lines: IO[bytes]) -> Iterator[IO[bytes]]:
    """Keep what can be read once, such as a pipe, in a file."""
    with tempfile.TemporaryFile(dir=temporary.folder()) as kept:
        shutil.copyfileobj(lines, kept)
        kept.seek(0)
        yield kept
