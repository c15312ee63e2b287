"""What Docker builds from a Dockerfile, and runs as the compose file says; where its daemon runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final


TAG: Final = "tidegate-test"
HARD: Final = ("--network", "host", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def runs_here() -> bool:
    """Tell whether Docker's daemon answers."""
    asked = ["docker", "version", "--format", "{{.Server.Os}}"]
    return bool(shutil.which("docker")) and subprocess.run(asked, capture_output=True, check=False).returncode == 0


class Image:
    """The image of a Dockerfile."""

    def __init__(self, dockerfile: Path, context: Path) -> None:
        _docker("build", "--network", "host", "--quiet", "--tag", TAG, "--file", str(dockerfile), str(context))

    def start(self, environment: Mapping[str, str], secret: Path) -> Container:
        """Start a container with the image's command."""
        return Container(_docker("run", "--detach", *_options(environment, secret), TAG).stdout.strip())

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], secret: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a container of its own."""
        return _docker("run", "--rm", *_options(environment, secret), TAG, *command, check=False)


class Container:
    """A container that runs."""

    def __init__(self, name: str) -> None:
        self._name = name

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command beside the worker."""
        return _docker("exec", self._name, *command, check=False)

    def stop(self) -> int:
        """Stop it, and return its exit code."""
        _docker("stop", "--time", "40", self._name)
        return int(_docker("inspect", "--format", "{{.State.ExitCode}}", self._name).stdout)

    def log(self) -> str:
        """Return what it has written."""
        done = _docker("logs", self._name)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Remove it."""
        _docker("rm", "--force", self._name)


def _options(environment: Mapping[str, str], secret: Path) -> list[str]:
    variables = [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
    return [*HARD, *variables, "--volume", f"{secret}:{secret}:ro"]


def _docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=110)
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done
