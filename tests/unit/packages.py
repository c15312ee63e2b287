"""Packages that a test writes, imports and forgets."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any


class Written:
    """A folder from which packages can be imported for as long as a test runs."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self._folder = folder
        monkeypatch.syspath_prepend(folder)

    def write(self, **modules: str) -> None:
        """Write modules by name: `__` stands for a dot, and `pkg__` for the package itself."""
        for name, code in modules.items():
            *parents, last = name.split("__")
            folder = self._folder.joinpath(*parents)
            folder.mkdir(parents=True, exist_ok=True)
            for parent in range(1, len(parents) + 1):
                self._folder.joinpath(*parents[:parent], "__init__.py").touch()
            (folder / f"{last or '__init__'}.py").write_text(dedent(code))
        importlib.invalidate_caches()

    def forget(self) -> None:
        """Take what was imported from here out of Python again."""
        here = str(self._folder)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(here):
                del sys.modules[name]
