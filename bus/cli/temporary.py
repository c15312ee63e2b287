"""Where temporary files are made."""

from __future__ import annotations

import tempfile

from ..errors import ConfigurationError


def folder() -> str:
    """Return the folder for temporary files; raises ConfigurationError where none can be written to."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigurationError(
            "there is no folder for temporary files: set TMPDIR to one that can be written to"
        ) from error
