"""Whose code a file of this machine is: what begins with none of these is the user's own."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Final


OURS: Final = str(Path(__file__).parent) + os.sep
PYTHONS: Final = (*(sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib")), "<")
INSTALLED: Final = tuple(sysconfig.get_path(kind) + os.sep for kind in ("purelib", "platlib"))
