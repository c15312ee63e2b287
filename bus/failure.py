"""What a handler's exception becomes: the failure record, and the judgement of the policy."""

from __future__ import annotations

import os
import platform
import re
import traceback
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Final, Literal

from . import clock
from .errors import Reject, RetryAfter
from .outcome import DeadLetter, Failure, Outcome, Reason, Retry
from .service import Handler
from .transport import Delivery


LONGEST_NAME = 200
"""Bytes of an exception's type that a record keeps."""
LONGEST_ERROR = 2_000
"""Bytes of an exception's text that a record keeps."""
LONGEST_TRACEBACK = 16_000
"""Bytes of a traceback that a record keeps: its end, where the cause is."""

FRAME: Final = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
CHAINED: Final = re.compile(r"^(?:The above exception was the direct|During handling of the above) ", re.MULTILINE)
FOLDER: Final = Path(__file__).parent


def worker_name() -> str:
    """Return `host:pid`, which tells an operator where it failed."""
    return f"{platform.node()}:{os.getpid()}"


def judge(handler: Handler, delivery: Delivery, error: BaseException, random: Random) -> Outcome:
    """Return what a run that raised comes to: another attempt by the handler's policy, or a dead letter."""
    # by its type: an exception may lie about its class
    kind = type(error)
    if issubclass(kind, Reject):
        return dead(handler, delivery, "rejected", error)
    if issubclass(kind, RetryAfter) and isinstance(asked := getattr(error, "delay", None), timedelta):
        # the handler asked for it, so it does not matter which errors the policy is for
        delay = max(asked, timedelta()) if delivery.attempt < handler.retry.attempts else None
    else:
        delay = handler.retry.decide(delivery.attempt, error, random)
    if delay is None:
        return dead(handler, delivery, "exhausted", error)
    return Retry(delay, failure(handler, delivery, "failed", error), delivery.attempt + 1)


def dead(handler: Handler, delivery: Delivery, reason: Reason, error: BaseException, runs: int = 1) -> DeadLetter:
    """Return the dead letter of a delivery; `runs` is 0 where the handler was not called."""
    return DeadLetter(failure(handler, delivery, reason, error, runs))


def failure(
    handler: Handler, delivery: Delivery, reason: Reason | Literal["failed"], error: BaseException, runs: int = 1
) -> Failure:
    """Return the record of a failure; only one that ends in a dead letter carries a traceback."""
    at = clock.now()
    return Failure(
        service=handler.service,
        handler=handler.name,
        reason=reason,
        error_type=type_name(error),
        error=text_of(error),
        traceback="" if reason == "failed" else traceback_of(error),
        attempts=delivery.attempt - 1 + runs,
        first_failed_at=delivery.first_failed_at or at,
        last_failed_at=at,
        worker=worker_name(),
        exception=error,
    )


def text_of(error: BaseException) -> str:
    """Return the exception's text, capped; also of one whose `str()` raises."""
    try:
        text = str(error)
    except BaseException as second:
        text = f"(its text cannot be had: str() raised {type_name(second)})"
    raw = _encoded(str.__getitem__(text, slice(LONGEST_ERROR + 1)))
    return raw.decode() if len(raw) <= LONGEST_ERROR else raw[:LONGEST_ERROR].decode(errors="ignore") + " …"


def described(error: BaseException) -> str:
    """Return the exception's type and text in a line."""
    return f"{type_name(error)}: {text_of(error)}"


def first_leaf(error: BaseException) -> BaseException:
    """Return the first exception that is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def notes(error: BaseException) -> list[str]:
    """Return what was noted with an exception, and with the first of a group: which resource was opened, say."""
    found = [*getattr(error, "__notes__", ()), *getattr(first_leaf(error), "__notes__", ())]
    return [str(note) for note in dict.fromkeys(found)]


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback, capped to its end."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as second:
        text = f"(the traceback cannot be had: formatting raised {type_name(second)})"
    raw = _encoded(text[-LONGEST_TRACEBACK - 1 :])
    return raw.decode() if len(raw) <= LONGEST_TRACEBACK else "… " + raw[-LONGEST_TRACEBACK:].decode(errors="ignore")


def place_in(traceback: str) -> str:
    """Return where a failure came from, by its traceback: "" where it has no frames.

    That is the innermost line of the user's code: what that calls fails for many reasons in one place. Where there is
    none, it is the innermost line that is installed and not ours, of the last exception; else the innermost of all.
    """
    frames = FRAME.findall(traceback)
    own = [frame for frame in frames if _whose(frame[0]) == "own"]
    last = [frame for frame in FRAME.findall(CHAINED.split(traceback)[-1]) if _whose(frame[0]) == "installed"]
    for file, line, name in (own or last or frames)[-1:]:
        return f"{file.rpartition('/')[2]}:{line} in {name}"
    return ""


@lru_cache(1024)
def _whose(file: str) -> Literal["own", "installed", "ours", "python's"]:
    """Return whose code a file is, on whichever machine it ran: ours is known by its names here."""
    _, found, inside = file.rpartition(f"/{FOLDER.name}/")
    if found and (FOLDER / inside).is_file():
        return "ours"
    if "/site-packages/" in file or "/dist-packages/" in file:
        return "installed"
    return "python's" if file.startswith("<") or "/lib/python3" in file else "own"


def type_name(error: BaseException) -> str:
    """Return the name of the exception's class, capped; also of one that is made to be unreadable."""
    # as `type` has it: a metaclass may have ideas of its own
    name = type.__dict__["__qualname__"].__get__(type(error))
    return _encoded(name[:LONGEST_NAME])[:LONGEST_NAME].decode(errors="ignore")


def _encoded(text: str) -> bytes:
    """Return the text as UTF-8, with lone surrogates escaped: no log and no wire could carry them.

    Text of a subclass of str may do anything in its methods, so they are not used.
    """
    return str.encode(text, "utf-8", "backslashreplace")
