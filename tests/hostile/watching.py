"""The worker's process, and what its journal and its log tell."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final


ROOT: Final = Path(__file__).parents[2]
MOST_BYTES: Final = 65_536
"""The largest body that the worker takes, so that few bytes are too many."""


@dataclass
class Told:
    """What the journal says."""

    runs: defaultdict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    done: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    memory: list[dict[str, int]] = field(default_factory=list)


class Crew:
    """The worker's process, its journal and its log."""

    def __init__(self, url: str, folder: Path) -> None:
        self.journal, self.log = folder / "journal", folder / "log"
        self._read = self._logged = 0
        self._rest = b""
        self.told = Told()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from tests.hostile.crew import app; app.cli()", "run"],
                cwd=ROOT,
                env=environment
                | {"BUS_URL": url, "BUS_LOG_FORMAT": "json", "BUS_DEPLOY_GRACE": "0.01", "PYTHONPATH": str(ROOT)}
                | {"HOSTILE_JOURNAL": str(self.journal), "BUS_MAX_MESSAGE_BYTES": str(MOST_BYTES)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def read(self) -> Told:
        """Read on in the journal."""
        if self.journal.exists():
            with self.journal.open("rb") as journal:
                journal.seek(self._read)
                new = self._rest + journal.read()
                self._read = journal.tell()
            *lines, self._rest = new.split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        return self.told

    def _take(self, told: dict[str, Any]) -> None:
        if "done" in told:
            self.told.done[told["done"]] += 1
        elif "answered" in told:
            self.told.answers[told["answered"]] += 1
        elif told["handler"] == "memory":
            self.told.memory.append(told)
        else:
            self.told.runs[told["token"]].append(told)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Read on in the log; whatever is no object of JSON in one line is an error here."""
        with self.log.open("rb") as log:
            log.seek(self._logged)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._logged += len(line)
                try:
                    read = json.loads(line)
                except ValueError:
                    raise AssertionError(f"no line of a log: {(line + log.read(2000)).decode()}") from None
                assert isinstance(read, dict)
                yield read

    def forget(self) -> None:
        """Begin anew with what the journal tells; the looks at the memory are kept."""
        self.told = Told(memory=self.told.memory)

    async def started(self) -> None:
        """Wait for the worker to be consuming."""
        async with asyncio.timeout(30):
            while b'"worker started"' not in self.log.read_bytes():
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Stop it as a service manager does, and see that it ends well."""
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]


@contextmanager
def crew(url: str, folder: Path) -> Iterator[Crew]:
    """Run the worker; it is killed in the end if it still runs."""
    running = Crew(url, folder)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
