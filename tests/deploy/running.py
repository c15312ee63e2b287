"""A worker that was started as a container starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Running:
    """A process, whose first child is the command where it has a world of its own."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        beside: Callable[[Sequence[str]], subprocess.CompletedProcess[str]],
        *,
        isolated: bool,
    ) -> None:
        self.run = beside
        self._isolated = isolated
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    @property
    def pid(self) -> int:
        """The process that the container would call 1."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text()) if self._isolated else pid

    def stop(self) -> int:
        """Stop it as Docker does, and return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self._process.wait(40)

    def log(self) -> str:
        """Return what it has written."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def close(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._process.wait(10)
        self._log.close()
