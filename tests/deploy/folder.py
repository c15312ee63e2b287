"""What a Dockerfile builds, in a plain folder: its steps are executed as the build would, and its worker is started.

Each stage has a folder that stands for its root. Where the tests run as root on Linux, the command runs as a container
runs it: as the first process of its own world, as the image's user, who has no name and no home, with every file system
read-only. Elsewhere it runs as whoever runs the tests.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from .dockerfile import Instruction, Stage, filled, pairs, parse
from .running import Running


ISOLATED: Final = sys.platform == "linux" and os.geteuid() == 0
PYTHON: Final = 'mount --bind "$0" "$1/python"'
"""Python as the base image has it, where everyone may read it; mounted for this process alone."""
BUILD: Final = f'{PYTHON}; shift; exec "$@"'
RUN: Final = f"""{PYTHON}
mount -o remount,ro,bind "$1/python"
mount -o remount,ro,bind /
cd "$3"
user=$2
shift 3
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --inh-caps=-all "$@"
"""


class Folder:
    """The last stage of a Dockerfile, built below `target` from `context`."""

    def __init__(self, dockerfile: Path, context: Path, target: Path) -> None:
        self._context = context
        self._target = target
        self._ignored = Ignored((context / ".dockerignore").read_text())
        self._roots: dict[str, Path] = {}
        self._python()
        for number, stage in enumerate(parse(dockerfile.read_text())):
            self.root = self._roots[stage.name] = target / f"stage-{number}"
            self._build(stage)
        self.user = stage.last("USER").text.partition(":")[0]
        self.command = self._exec(stage.last("CMD"))
        self.health = self._exec(stage.last("HEALTHCHECK"))

    def start(self, environment: Mapping[str, str], secret: Path) -> Running:
        """Start the image's command."""
        del secret  # it is where it is
        beside = functools.partial(self.run, environment=environment)
        return Running(self._inside(self.command), self._environment | environment, beside, isolated=ISOLATED)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], secret: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a container of its own."""
        inside, variables = self._inside(command), self._environment | environment
        return subprocess.run(inside, env=variables, capture_output=True, text=True, check=False, timeout=60)

    def _python(self) -> None:
        python, programs = self._target / "python", self._target / "programs"
        programs.mkdir(parents=True)
        if ISOLATED:
            python.mkdir()
        else:
            python.symlink_to(sys.base_prefix)
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shim = programs / "python"
        shim.write_text(f'#!/bin/sh\nexec {python}/bin/{name} "$@"\n')
        shim.chmod(0o755)

    def _build(self, stage: Stage) -> None:
        self.root.mkdir()
        self._folder = self.root
        # the library's path: a Python that was linked to where it stood is looked for where it stands here
        libraries = {"LD_LIBRARY_PATH": str(self._target / "python" / "lib")} if ISOLATED else {}
        self._environment = {"PATH": f"{self._target / 'programs'}:/usr/bin:/bin"} | libraries
        for instruction in stage.instructions:
            match instruction.keyword:
                case "WORKDIR":
                    self._folder = self._at(instruction.text)
                    self._folder.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(instruction)
                case "RUN":
                    self._run(instruction)
                case "ENV":
                    values = pairs(instruction.text, self._environment)
                    self._environment |= {name: self._placed(value) for name, value in values.items()}

    def _at(self, path: str) -> Path:
        """Return where a path of the image is."""
        return self.root / path.lstrip("/") if path.startswith("/") else self._folder / path

    def _placed(self, value: str) -> str:
        """Return a value with the working folder where it is here."""
        inside = "/" + str(self._folder.relative_to(self.root))
        return re.sub(rf"(?<![\w/.-]){re.escape(inside)}(?=[/:]|$)", str(self._folder), value)

    def _copy(self, instruction: Instruction) -> None:
        *sources, destination = shlex.split(filled(instruction.text, self._environment))
        stage = instruction.flags.get("from")
        for source in sources:
            origin = self._context / source if stage is None else self._roots[stage] / source.lstrip("/")
            target = self._at(destination)
            if origin.is_dir():
                skip = None if stage is not None else self._skipped
                shutil.copytree(origin, target, symlinks=True, ignore=skip, dirs_exist_ok=True)
            elif stage is None and self._ignored(source):
                raise FileNotFoundError(f"COPY {source}: .dockerignore leaves it out")
            else:
                shutil.copy2(origin, target / origin.name if destination.endswith("/") else target)

    def _skipped(self, folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(self._context)
        return [name for name in names if self._ignored(str(inside / name))]

    def _run(self, instruction: Instruction) -> None:
        command = ["sh", "-c", instruction.text]
        if ISOLATED:
            command = ["unshare", "--mount", "sh", "-ec", BUILD, sys.base_prefix, str(self._target), *command]
        # what pip is told here (proxies, certificates) a build would be told by its own settings
        environment = os.environ | self._environment
        done = subprocess.run(
            command, cwd=self._folder, env=environment, capture_output=True, text=True, check=False, timeout=110
        )
        if done.returncode:
            raise RuntimeError(f"RUN {instruction.text}\n{done.stdout}{done.stderr}")

    def _exec(self, instruction: Instruction) -> list[str]:
        if instruction.words is None:
            raise ValueError(
                f"{instruction.keyword} {instruction.text}: a shell would stand between it and its signals"
            )
        return instruction.words

    def _inside(self, command: Sequence[str]) -> list[str]:
        if not ISOLATED:
            return ["sh", "-c", 'cd "$0" && exec "$@"', str(self._folder), *command]
        world = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", RUN]
        return [*world, sys.base_prefix, str(self._target), self.user, str(self._folder), *command]


class Ignored:
    """The rules of a .dockerignore: the last one that fits a path, or a folder above it, decides."""

    def __init__(self, rules: str) -> None:
        lines = [line.strip() for line in rules.splitlines() if line.strip() and not line.startswith("#")]
        self._rules = [(_pattern(line.removeprefix("!")), not line.startswith("!")) for line in lines]

    def __call__(self, path: str) -> bool:
        parts = Path(path).parts
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        fitting = [out for pattern, out in self._rules if any(pattern.fullmatch(each) for each in above)]
        return bool(fitting) and fitting[-1]


def _pattern(rule: str) -> re.Pattern[str]:
    regex = re.escape(rule.strip("/"))
    return re.compile(regex.replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*").replace(r"\*", "[^/]*"))
