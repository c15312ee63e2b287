"""The worker that hostile messages are sent to.

Every run of a handler is a line in the journal that `HOSTILE_JOURNAL` names, so that whoever sent a message can tell
what became of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from bus import App, Context, Event, Message, Reject, RetryAfter, Service, fixed, immediate


TOKEN = re.compile(rb"#T(\d{7})#")
"""What a body is known by, wherever it comes out."""
LADDER, LATER = 0.3, 0.45
SAMPLE = 2_000
"""Runs after which the memory is looked at again."""


class Answered(Event, type="hostile.answered"):
    token: int


class Numbered(Event, type="typed.numbered"):
    number: int
    token: str = ""


class Journal:
    """Lines of JSON in a file that outlives the worker."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._runs = 0

    def write(self, **told: Any) -> None:
        os.write(self._file, json.dumps(told).encode() + b"\n")

    def run(self, handler: str, message: Message, attempt: int) -> int:
        """Note a run and return the message's token."""
        found = TOKEN.search(message.body)
        token = int(found[1]) if found else -1
        self.write(
            handler=handler,
            token=token,
            attempt=attempt,
            at=time.monotonic(),
            id=message.id,
            type=message.type,
            headers=sorted(message.headers.items()),
        )
        self._runs += 1
        if self._runs % SAMPLE == 0:
            gc.collect()
            self.write(handler="memory", runs=self._runs, objects=len(gc.get_objects()), rss=resident())
        return token

    def done(self, handler: str, token: int) -> None:
        self.write(handler=handler, done=token)


def resident() -> int:
    """Return the kilobytes of memory that this process has."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class Liar(Exception):
    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Text(str):
    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError


class Wordy(Exception):
    def __str__(self) -> str:
        return Text("no text at all")


class Empty(RetryAfter):
    def __init__(self) -> None:
        pass  # it never says how long


class Base(BaseException):
    pass


def nested(levels: int) -> BaseException:
    error: Exception = ValueError("\ud800" * 5000)
    for _ in range(levels):
        error = ExceptionGroup("in\x00side\n" + "x" * 50, [error, KeyError("\u2028")])
    return error


def long_chain() -> BaseException:
    last: BaseException = ValueError("first")
    for number in range(300):
        error = RuntimeError(str(number))
        error.__cause__ = last
        last = error
    return last


FORGERY = 'no\n{"event": "ack", "level": "info", "forged": true}\r\n\x1b[2J\u2028\u0085forged'
Odd = type("Odd", (Exception,), {})
Odd.__qualname__ = "Na\nme\ud800" + "x" * 5000
EXCEPTIONS: list[Any] = [
    *(Mute, Liar, Wordy, Empty, long_chain),
    lambda: Odd("odd"),
    lambda: Base("base"),
    lambda: SystemExit("exit"),
    lambda: asyncio.CancelledError("nobody did"),
    lambda: ValueError(FORGERY),
    lambda: ValueError("\ud800" * 100_000),
    lambda: ValueError("😀" * 50_000),
    lambda: nested(3),
    lambda: nested(200),
    lambda: BaseExceptionGroup("group", [Base(), Mute()]),
    lambda: OSError(2, "no", b"\xff"),
    lambda: UnicodeDecodeError("utf-8", b"\xff" * 1000, 0, 1, "bad"),
    lambda: StopIteration(1),
    StopAsyncIteration,
    RecursionError,
    lambda: SyntaxError("bad", ("\x00", -5, 10**9, "x" * 10_000)),
]
"""Makers of what handlers raise."""

hostile = Service("hostile", concurrency=16)
journal = Journal(os.environ.get("HOSTILE_JOURNAL", os.devnull))


@hostile.on("fine.#")
async def fine(message: Message, context: Context) -> Answered:
    token = journal.run("fine", message, context.attempt)
    journal.done("fine", token)
    return Answered(token=token)


@hostile.on(Answered)
async def answers(answered: Answered, message: Message) -> None:
    journal.write(handler="answers", answered=answered.token, id=message.id, cause=message.causation_id)


@hostile.on("raises.#", retry=immediate(2))
async def raises(message: Message, context: Context) -> None:
    token = journal.run("raises", message, context.attempt)
    error = EXCEPTIONS[token % len(EXCEPTIONS)]()
    raise error


@hostile.on("ladder.#", retry=fixed(3, LADDER))
async def ladder(message: Message, context: Context) -> None:
    token = journal.run("ladder", message, context.attempt)
    if context.attempt < 3:
        raise ValueError(FORGERY)
    journal.done("ladder", token)


@hostile.on("later.#", retry=fixed(2, LADDER))
async def later(message: Message, context: Context) -> None:
    token = journal.run("later", message, context.attempt)
    if context.attempt == 1:
        raise RetryAfter(LATER)
    journal.done("later", token)


@hostile.on("rejects.#")
async def rejects(message: Message, context: Context) -> None:
    journal.run("rejects", message, context.attempt)
    raise Reject(FORGERY)


@hostile.on(Numbered)
async def typed(numbered: Numbered, message: Message, context: Context) -> None:
    token = journal.run("typed", message, context.attempt)
    journal.done("typed", token)


@hostile.on("nothing", name="spy")
async def spy(message: Message, context: Context) -> None:
    journal.run("spy", message, context.attempt)


app = App("hostile", events="tests.hostile.crew", services="tests.hostile.crew")
