"""Finds the RabbitMQ that the tests want, or installs it where that is possible.

`BROKER=4.0` wants a version; without it any will do. Debian has each in one of its releases; another release than the
machine's own is unpacked into a folder of the user's cache, and its programs run with that folder as their root.
"""

from __future__ import annotations

import fcntl
import os
import platform
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


def at_hand(version: str) -> Programs | None:
    """Return a version's programs where nothing has to be fetched for them, None otherwise."""
    if (found := _found(version)) is not None:
        return found
    if os.geteuid() == 0 and (found := _inside(version, _root(version))) is not None:
        return found
    if _docker():
        image = f"rabbitmq:{version}"
        done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False, timeout=20)
        return Programs(image=image) if done.returncode == 0 else None
    return None


def remedy(version: str) -> str:
    """Return how a version that is not at hand can be had on this machine, in one line."""
    if _docker():
        return f"docker pull rabbitmq:{version}"
    if shutil.which("apt-get"):
        return f"as root, `make versions` unpacks that of Debian {DEBIAN[version]} into {_root(version)}"
    return f"it needs Docker here: docker pull rabbitmq:{version}"


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
            try:
                if version and DEBIAN[version] != platform.freedesktop_os_release().get("VERSION_CODENAME"):
                    return _unpacked(version)
                _install("rabbitmq-server")
            except subprocess.SubprocessError as error:
                raise NoBroker(f"{MISSING} It could not be fetched: {error}") from error
            if found := _found(version):
                return found
    raise NoBroker(f"RabbitMQ {version} is not here: {remedy(version)}" if version else MISSING)


def version_of(found: Programs) -> str:
    """Return the version that programs are of, as `BROKER` has it; "" where nothing tells."""
    if found.image:
        return found.image.partition(":")[2]
    home = str(Path(found.root, found.folder.lstrip("/"), "rabbitmq-server").resolve()) + found.root
    return next((version for version in DEBIAN if f"-{version}" in home), "")


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


def _unpacked(version: str) -> Programs:
    """Return the programs of a version that is unpacked in the cache, and unpack it there first where it is not."""
    root = _root(version)
    if not root.exists():
        if not shutil.which("debootstrap"):
            _install("debootstrap")
        root.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=root.parent))
        packages = "--include=rabbitmq-server,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, DEBIAN[version], str(fresh)]
        try:
            subprocess.run(command, check=True, timeout=1200, stdout=subprocess.DEVNULL)
            (fresh / "etc/hosts").write_text("127.0.0.1 localhost\n")
            fresh.chmod(0o755)
            fresh.rename(root)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    if (found := _inside(version, root)) is not None:
        return found
    there = ", ".join(path.name for path in (root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    raise NoBroker(
        f"BROKER={version}: Debian {DEBIAN[version]} in {root} has {there or 'no RabbitMQ'}; "
        f"remove that folder to fetch it anew, or use Docker: docker pull rabbitmq:{version}"
    )


def _root(version: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidegate"
    return cache / f"rabbitmq-{version}"


def _inside(version: str, root: Path) -> Programs | None:
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
