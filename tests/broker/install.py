"""Finds the RabbitMQ that the tests want, or installs it where that is possible.

`BROKER=4.0` wants a version; without it any will do. Debian has each in one of its releases; another release than the
machine's own is unpacked into a folder of the user's cache, and its programs run with that folder as their root.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final


FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
DEBIAN: Final = {"3.10": "bookworm", "4.0": "trixie", "4.3": "sid"}
"""The release of Debian whose package has each version."""
POLICY: Final = Path("/usr/sbin/policy-rc.d")
TURN: Final = Path(tempfile.gettempdir(), "tidegate-install.lock")
MISSING: Final = (
    "The tests on a real broker need RabbitMQ: install the package rabbitmq-server (Debian, Ubuntu: "
    "apt install rabbitmq-server; macOS: brew install rabbitmq), or run Docker, or run the tests as root on Debian."
)


class NoBroker(RuntimeError):
    """There is no RabbitMQ on this machine, and no way to get it."""


@dataclass(frozen=True)
class Programs:
    """RabbitMQ's programs: their folder, seen from `root`; or the image that Docker runs."""

    folder: str = ""
    root: str = "/"
    image: str = ""

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return how a program is run on this machine."""
        run = [f"{self.folder}/{program}", *arguments]
        if self.root == "/":
            return run
        # a mount that nobody else sees, and that goes with the process
        return ["unshare", "--mount", "sh", "-c", INSIDE, self.root, *run]


INSIDE: Final = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'


def wanted() -> str:
    """Return the version that the run is for, "" for any. Raises NoBroker for one that nobody knows how to get."""
    version = os.environ.get("BROKER", "")
    if version and version not in DEBIAN:
        raise NoBroker(f"BROKER={version}: the tests know how to get {', '.join(DEBIAN)}")
    return version


def programs() -> Programs:
    """Return RabbitMQ's programs. Raises NoBroker with what is missing.

    Processes take turns: what another one is just installing is there only when that one is done.
    """
    version = wanted()
    with TURN.open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if found := _found(version):
            return found
        if _docker():
            return Programs(image=f"rabbitmq:{version or 3}")
        if os.geteuid() == 0 and shutil.which("apt-get"):
            if not version:
                _install("rabbitmq-server")
            elif found := _unpacked(version):
                return found
            if found := _found(version):
                return found
    raise NoBroker(f"{MISSING} BROKER={version} needs that version." if version else MISSING)


def _found(version: str) -> Programs | None:
    for folder in FOLDERS:
        program = Path(folder) / "rabbitmq-server"
        # its real home tells the version, as in rabbitmq_server-3.10.8
        if program.exists() and f"-{version}" in str(program.resolve()):
            return Programs(folder)
    # Debian's wrappers on the PATH insist on a system user; elsewhere the program itself is there
    if not version and (on_path := shutil.which("rabbitmq-server")) and not on_path.startswith("/usr/sbin"):
        return Programs(str(Path(on_path).resolve().parent))
    return None


def _unpacked(version: str) -> Programs | None:
    """Return the programs of a version that is unpacked in the cache, and unpack it there first where it is not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate"
    root = cache / f"rabbitmq-{version}"
    if not root.exists():
        if not shutil.which("debootstrap"):
            _install("debootstrap")
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        packages = "--include=rabbitmq-server,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, DEBIAN[version], str(fresh)]
        subprocess.run(command, check=True, timeout=1200, stdout=subprocess.DEVNULL)
        (fresh / "etc/hosts").write_text("127.0.0.1 localhost\n")
        fresh.chmod(0o755)
        fresh.rename(root)
    home = next((root / "usr/lib/rabbitmq/lib").glob(f"rabbitmq_server-{version}*"), None)
    return Programs("/usr/lib/rabbitmq/bin", str(root)) if home else None


def _docker() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=20).returncode == 0


def _install(package: str) -> None:
    """Install one of Debian's packages without letting it start its service."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
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
