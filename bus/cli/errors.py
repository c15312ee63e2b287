"""What a user's mistake looks like: a line that says what was wrong and what to do, an exit code, no traceback."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import typer

from ..errors import (
    AccessRefused,
    BusUnavailable,
    ConfigurationError,
    MessageTooLarge,
    PublishError,
    Undecodable,
)
from ..logs import escape
from ..settings import unknown


FAILED: Final = 1
MISTAKE: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130
FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a disk says that takes no more."""


def explained(work: Callable[[], object], told: Callable[[str], None] | None = None) -> int:
    """Do the work and return the exit code: what it returns if that is a number from 0 to 255, 1 for another, else 0.

    What a user can cause is told, by default in lines on standard error; anything else is raised, as a bug is.
    """
    say = told or tell
    try:
        code = work()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        leaves = _leaves(error)
        codes = [code for leaf in leaves if (code := code_of(leaf)) is not None]
        if len(codes) < len(leaves):
            raise
        for text in dict.fromkeys(map(_told, leaves)):
            say(text)
        return codes[0]
    if not isinstance(code, int) or isinstance(code, bool):
        return 0
    # the system keeps eight bits: 256 would say that it worked
    return code if 0 <= code < 256 else FAILED


def code_of(error: BaseException) -> int | None:
    """Return the exit code of an error that a user can cause; None for a bug."""
    match error:
        case ConfigurationError() | AccessRefused() | Undecodable() | MessageTooLarge():
            return MISTAKE
        case BusUnavailable():
            return UNAVAILABLE
        case PublishError():
            return FAILED
        case LookupError() if type(error) is LookupError:
            return FAILED
        case OSError() if error.errno in FULL:
            return FAILED
    return None


def tell(text: str) -> None:
    """Write lines to standard error, with control characters escaped; what cannot be written is lost."""
    with suppress(OSError):  # the exit code tells all the same
        for line in text.splitlines():
            typer.echo(escape(line), err=True)


def tell_unknown() -> None:
    """Tell each `BUS_` name of the environment that is no setting."""
    for line in unknown():
        tell(line)


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in FULL:
        return f"cannot write{f' {error.filename}' if error.filename else ''}: {error.strerror}"
    return str(error)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
