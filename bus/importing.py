"""Imports a module of the app: what it raises is told in a few lines, with the lines of the user's code alone."""

from __future__ import annotations

import importlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Final

from .errors import ConfigurationError, TidegateError
from .failure import described
from .places import INSTALLED, OURS, PYTHONS


MOST_PLACES: Final = 5
"""Lines of code that are shown of those that led to an error: the innermost."""
MACHINERY: Final = ("<frozen ", OURS, str(Path(importlib.__file__).parent) + os.sep)
"""Files of Tidegate itself and of Python's import: no line of theirs tells a user anything."""
PLACED: Final = re.compile(r"\(.*\.py:\d+\)")


def imported(name: str, setting: str) -> ModuleType:
    """Return a module of the package that a setting names; raise ConfigurationError for whatever its import raises."""
    try:
        return importlib.import_module(name)
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        raise ConfigurationError(
            f"{setting}: the import of {name} ended the program with exit({code}){place}; what a module does only as a "
            'program belongs under `if __name__ == "__main__":`'
        ) from error
    except ConfigurationError as error:
        # a mistake of a handler is told with the handler's place already
        raise ConfigurationError(*error.problems, *([] if PLACED.search(str(error)) else _places(error))) from error
    except (TidegateError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            _look_above(error.name or "", setting)
            raise ConfigurationError(
                f"{setting}={name!r}: there is no such package; run the program from the folder that holds it"
            ) from error
        raise ConfigurationError(_told(name, setting, error)) from error


def unreadable(setting: str, error: OSError) -> ConfigurationError:
    """Return the mistake that a folder of a package cannot be read."""
    return ConfigurationError(
        f"{setting}: {error.filename} cannot be read: {error.strerror}; the user of this process must have that right"
    )


def _look_above(missing: str, setting: str) -> None:
    """Raise for a folder where a module would be and that may not be listed: to Python it is an empty one."""
    above = sys.modules.get(missing.rpartition(".")[0])
    for folder in getattr(above, "__path__", sys.path):
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                next(Path(folder).iterdir(), None)
            except PermissionError as error:
                raise unreadable(setting, error) from error


def _told(name: str, setting: str, error: BaseException) -> str:
    told, *more = [line for line in described(error).splitlines() if line.strip()]
    return "\n".join(
        [
            f"{setting}: the import of {name} failed: {told}",
            *(f"  {line}" for line in more),
            *_places(error),
            f"`python -c 'import {name}'` shows the whole traceback",
        ]
    )


def _places(error: BaseException) -> list[str]:
    """Return the user's lines of code that led to an error, the innermost last."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(MACHINERY)]
    own = [frame for frame in frames if not frame.filename.startswith((*INSTALLED, *PYTHONS))]
    # an app that is installed lies among the libraries
    lines = [f"  {_short(frame.filename)}:{frame.lineno}, in {frame.name}: {frame.line}" for frame in own or frames]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        lines.append(f"  {_short(error.filename)}:{error.lineno}: {(error.text or '').strip()}")
    return lines[-MOST_PLACES:]


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
