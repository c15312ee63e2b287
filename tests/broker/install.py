"""Finds RabbitMQ's programs, or installs them where that is possible."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final


FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
POLICY: Final = Path("/usr/sbin/policy-rc.d")
TURN: Final = Path(tempfile.gettempdir(), "tidegate-install.lock")
MISSING: Final = (
    "The tests on a real broker need RabbitMQ: install the package rabbitmq-server (Debian, Ubuntu: "
    "apt install rabbitmq-server; macOS: brew install rabbitmq), or run Docker, or run the tests as root on Debian."
)


class NoBroker(RuntimeError):
    """There is no RabbitMQ on this machine, and no way to get it."""


def programs() -> Path | None:
    """Return the folder of RabbitMQ's programs; None means Docker. Raises NoBroker with what is missing.

    Processes take turns: what another one is just installing is there only when that one is done.
    """
    with TURN.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if found := _found():
            return found
        if _docker():
            return None
        if os.geteuid() == 0 and shutil.which("apt-get"):
            _install()
            if found := _found():
                return found
    raise NoBroker(MISSING)


def _found() -> Path | None:
    for folder in FOLDERS:
        if (Path(folder) / "rabbitmq-server").exists():
            return Path(folder)
    # Debian's wrappers on the PATH insist on a system user; elsewhere the program itself is there
    if (program := shutil.which("rabbitmq-server")) and not program.startswith("/usr/sbin"):
        return Path(program).resolve().parent
    return None


def _docker() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=20).returncode == 0


def _install() -> None:
    """Install Debian's package without letting it start its service."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "rabbitmq-server"]):
            subprocess.run(["apt-get", *command], env=environment, check=True, timeout=600, stdout=subprocess.DEVNULL)


@contextmanager
def _no_services() -> Iterator[None]:
    """Forbid packages to start services meanwhile, as Debian's policy layer has it."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
