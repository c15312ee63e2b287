"""Prints tables and texts, in the width of the terminal, or in one that is good to grep."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from ..logs import escape


if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


WIDTH: Final = 160
"""Columns where the output is no terminal, and COLUMNS does not say."""


def show(*parts: RenderableType, wrap: bool = True) -> None:
    """Print the parts to standard output; without `wrap`, long lines stay whole."""
    from rich.console import Console

    width = shutil.get_terminal_size((WIDTH, 0)).columns
    console = Console(highlight=False, markup=False, soft_wrap=not wrap, width=width)
    for part in parts:
        console.print(part)


def text(of: object, style: str = "") -> Text:
    """Return text for a table or a line: what looks like markup stays as it is, control characters are escaped."""
    from rich.text import Text

    return Text(escape(str(of)), style)


def block(of: str) -> Text:
    """Return text of many lines, each of them escaped."""
    from rich.text import Text

    return Text("\n".join(escape(line) for line in of.split("\n")))
