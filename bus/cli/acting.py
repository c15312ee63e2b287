"""Acting on many dead letters, one after the other: asked for, at a rate, shown, stopped, and taken up again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import typer

from .. import logs
from ..app import App
from ..errors import BusUnavailable, ConfigurationError, MessageTooLarge, Unroutable
from ..outcome import Letter
from ..transport import DeadLetters
from .broker import dead_letters
from .choice import Choice, Selection, matching, name, select
from .errors import FAILED, INTERRUPTED, code_of, tell


Action: TypeAlias = Callable[[DeadLetters, Letter], Awaitable[object]]
AWAY: Final = 60.0
"""Seconds without any progress after which a broker that is away ends the command."""
AGAIN: Final = 1.0
LINE_EACH: Final = 1_000
"""Letters after which a line is written where there is no terminal."""
MOST_TOLD: Final = 20


async def act(app: App, chosen: Choice, verb: str, action: Action, *, yes: bool, pause: float = 0.0) -> int:
    """Act on every letter that is meant, `pause` seconds apart, and return the exit code."""
    async with dead_letters() as dead:
        found = await select(app, dead, chosen)
        if not found.names:
            typer.echo(f"nothing to {verb}: no open letter matches")
            return 0
        # a letter that is named is meant; what filters find may be more than whoever wrote them thinks
        many = len(found.names) > 1 or not chosen.ids
        if many and not yes and not confirmed(_question(verb, found)):
            tell(f"no letter was touched: {verb} was not confirmed")
            return FAILED
        return await Run(app, dead, chosen, verb, action, pause, found).all()


def _question(verb: str, found: Selection) -> str:
    told = ", ".join(f"{count} of {place}" for place, count in found.places.most_common())
    return f"{verb} {len(found.names)} dead letters ({told})?"


def confirmed(question: str) -> bool:
    """Ask; raises ConfigurationError where there is nobody to ask."""
    question = logs.escape(question)
    if not sys.stdin.isatty():
        raise ConfigurationError(f"{question} There is no terminal to ask at: add --yes")
    try:
        with _interruptible():
            return typer.confirm(question, err=True)
    except typer.Abort as stopped:
        raise KeyboardInterrupt from stopped


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a question at once: the event loop, which stands still meanwhile, would not hear of it."""
    loops = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, loops)


class Run:
    """One run over the letters that were found. Ctrl-C ends it after the letter that is under way."""

    def __init__(
        self, app: App, dead: DeadLetters, chosen: Choice, verb: str, action: Action, pause: float, found: Selection
    ) -> None:
        self._app = app
        self._dead = dead
        self._chosen = chosen
        self._verb = verb
        self._action = action
        self._pause = pause
        self._left = dict(found.names)
        self._total = len(found.names)
        self._done = 0
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._due = self._progress_at = self._loop.time()

    async def all(self) -> int:
        """Act on one letter after the other, and tell how many were done, also where that is not all of them."""
        try:
            with self._stoppable(), _shown(self._verb, self._total) as show:
                await self._through_outages(show)
            self._tell_left()
        finally:
            typer.echo(f"{self._verb}: {self._done} of {self._total} done")
        if self._stopped.is_set() and self._done < self._total:
            tell("stopped; the same command goes on where this one ended")
            return INTERRUPTED
        return 0 if self._done == self._total else FAILED

    async def _through_outages(self, show: Callable[[int], None]) -> None:
        """Go on after an outage of the broker, unless it lasts."""
        while True:
            try:
                await self._each(show)
                return
            except BusUnavailable as error:
                if self._loop.time() - self._progress_at > AWAY:
                    raise
                tell(f"the broker is away, trying again: {error}")
            await self._wait(AGAIN)
            if self._stopped.is_set():
                return

    async def _each(self, show: Callable[[int], None]) -> None:
        async for letter in matching(self._app, self._dead, self._chosen):
            if name(letter) not in self._left:
                continue
            await self._wait(self._due - self._loop.time())
            if self._stopped.is_set():
                return
            self._due = self._loop.time() + self._pause
            await self._one(letter)
            show(self._total - len(self._left))

    async def _one(self, letter: Letter) -> None:
        told = name(letter)
        try:
            await self._action(self._dead, letter)
            self._done += 1
        except Unroutable as error:
            tell(f"{told}: {error}. `dead replay {told} --to SERVICE.HANDLER` sends it to another handler")
        except Exception as error:
            # a letter that is too large is no reason to leave the others, as a wrong password is
            if code_of(error) != FAILED and not isinstance(error, MessageTooLarge):
                raise
            tell(f"{told}: {error}")
        del self._left[told]
        self._progress_at = self._loop.time()

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()
            except TimeoutError:
                pass  # nobody stopped it

    def _tell_left(self) -> None:
        if self._stopped.is_set():
            return
        for told in list(self._left)[:MOST_TOLD]:
            tell(f"{told}: it is not open any more: somebody else took it meanwhile")
        if len(self._left) > MOST_TOLD:
            tell(f"and {len(self._left) - MOST_TOLD} more")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        def stop() -> None:
            # a second Ctrl-C ends it at once
            self._loop.remove_signal_handler(signal.SIGINT)
            self._stopped.set()

        self._loop.add_signal_handler(signal.SIGINT, stop)
        try:
            yield
        finally:
            self._loop.remove_signal_handler(signal.SIGINT)


@contextmanager
def _shown(verb: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far it is: a bar on a terminal, else a line now and then."""
    if total == 1 or not sys.stderr.isatty():

        def line(done: int) -> None:
            if done % LINE_EACH == 0 and done < total:
                tell(f"{verb}: {done} of {total}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(verb, total=total)
        yield lambda done: progress.update(task, completed=done)
