"""What a user's mistake looks like: a line that says what was wrong and what to do, an exit code, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from ..errors import (
    AccessRefused,
    BusUnavailable,
    ConfigurationError,
    MessageTooLarge,
    PublishError,
    Undecodable,
)
from ..logs import escape


FAILED: Final = 1
MISTAKE: Final = 2
UNAVAILABLE: Final = 3
INTERRUPTED: Final = 130

MISTAKES: Final = (ConfigurationError, AccessRefused, Undecodable, MessageTooLarge)


def explained(line: Callable[..., Any]) -> int:
    """Run a command line and return its exit code; what a user can cause is told in lines on stderr."""
    try:
        code = line(standalone_mode=False)
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.exceptions.Abort:
        return _told("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return _told("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # who read the output has gone: nothing is wrong, and nothing can be said any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseExceptionGroup as group:
        return _explain(_first(group))
    except Exception as error:
        return _explain(error)
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> int:
    if isinstance(error, MISTAKES):
        return _told(str(error), MISTAKE)
    if isinstance(error, BusUnavailable):
        return _told(str(error), UNAVAILABLE)
    if isinstance(error, PublishError) or type(error) is LookupError:
        return _told(str(error), FAILED)
    raise error


def _told(text: str, code: int) -> int:
    for line in text.splitlines():
        sys.stderr.write(f"{escape(line)}\n")
    return code


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
