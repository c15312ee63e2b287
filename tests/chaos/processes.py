"""The processes under attack, each started again whenever it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Final

from .ledger import STORE, WHERE, Ledger


AGAIN_AFTER: Final = 0.3
"""Seconds until a process that ended is started again, as a supervisor does."""
LEAVES_WITHIN: Final = 45.0
YOUNG: Final = 5.0
"""Seconds in which a process may not have come to minding signals yet."""


class Process:
    """A module that runs as a process of its own, with a ledger and a log of its name."""

    def __init__(self, name: str, module: str, *arguments: str, folder: Path, ledger: Ledger, url: str) -> None:
        self.name = name
        self._command = (sys.executable, "-m", module, *arguments)
        self._log = folder / f"{name}.log"
        self._ledger = ledger
        settings = {"BUS_URL": url, "BUS_LOG_LEVEL": "info", "BUS_LOG_FORMAT": "json"}
        self._environment = (
            os.environ
            | settings
            | {
                WHERE: str(folder / f"{name}.ledger"),
                STORE: str(folder / "once.db"),
            }
        )
        self._running: asyncio.subprocess.Process | None = None
        self._expected: set[int] = set()
        self._since = 0.0
        self._over = False

    async def run(self) -> None:
        """Keep it running, until `finish`."""
        while not self._over:
            with self._log.open("ab") as log:
                # a pipe that is closed with this process, and a group that Ctrl-C does not reach
                self._running = await asyncio.create_subprocess_exec(
                    *self._command,
                    env=self._environment,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                )
            self._since = asyncio.get_running_loop().time()
            try:
                code = await self._running.wait()
            except asyncio.CancelledError:
                self._running.kill()
                await self._running.wait()
                raise
            self._ledger.write("ended", name=self.name, code=code)
            if code not in self._expected:
                self._ledger.write("problem", told=f"{self.name} ended with {code}; {self._log} may say why")
            self._expected.clear()
            if not self._over:
                await asyncio.sleep(AGAIN_AFTER)

    def kill(self) -> None:
        """Kill it; it is started again. Raises RuntimeError if it does not run."""
        self._send(signal.SIGKILL, -signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to stop, and return when it has; it is started again. Raises RuntimeError if it does not run."""
        young = asyncio.get_running_loop().time() - self._since < YOUNG
        running = self._send(signal.SIGTERM, 0, *([-signal.SIGTERM] if young else []))
        try:
            async with asyncio.timeout(LEAVES_WITHIN):
                await running.wait()
        except TimeoutError:
            self._ledger.write("problem", told=f"{self.name} did not stop within {LEAVES_WITHIN:g} s")
            self.kill()

    async def finish(self) -> None:
        """Ask it to stop if it runs, for good, and return when it has."""
        self._over = True
        if self._running is not None and self._running.returncode is None:
            await self.stop()

    def _send(self, number: int, *codes: int) -> asyncio.subprocess.Process:
        if self._running is None or self._running.returncode is not None:
            raise RuntimeError(f"{self.name} does not run, so that nothing can be done to it")
        self._expected |= set(codes)
        self._running.send_signal(number)
        return self._running
