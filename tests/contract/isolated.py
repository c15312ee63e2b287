"""A program of two services that a test runs with `run --isolate`: one of them is sick as it is told to be."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.broker.node import free_ports

from .stage import Log


WITHIN = 60.0
"""Seconds to wait for what processes do that have to start first, on a machine that is busy."""
ROOT = Path(__file__).parents[2]
PROGRAM = """
import ctypes, time
from pathlib import Path
from bus import App, Event, Service


class Placed(Event, type="order.placed"):
    number: int = 0
    note: str = ""

sick, healthy = Service("sick"), Service("healthy")

@sick.on(Placed)
async def work(placed: Placed) -> None:
    if placed.note == "crash" and not Path("crashed").exists():
        Path("crashed").touch()
        ctypes.string_at(0)
    while placed.note == "block" and not Path("go").exists():
        time.sleep(0.02)

@healthy.on(Placed)
async def note(placed: Placed) -> None:
    print(placed.number, flush=True)

if __name__ == "__main__":
    App("clinic", events="clinic", services="clinic").cli()
"""


class Program:
    """The program while it runs: the log lines of all its processes, and what the healthy service printed."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, port: int) -> None:
        self.process = process
        self.folder = folder
        self.lines: Log[dict[str, Any]] = Log()
        self.done: Log[int] = Log()
        self.raw: Log[str] = Log()
        self._port = port

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the lines of an event that have these fields."""
        return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

    async def says(self, event: str, times: int = 1, **fields: Any) -> dict[str, Any]:
        """Wait for the line of an event, and return it."""
        await self.lines.holds(lambda _: len(self.said(event, **fields)) >= times, f"{event} {fields}", WITHIN)
        return self.said(event, **fields)[times - 1]

    async def asks(self, path: str, method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=WITHIN) as client:
            return await client.request(method, path)

    async def answers(self, path: str, expected: str, method: str = "GET") -> str:
        """Ask until this is in the answer, which lacks what a process on a busy machine is late with; return it."""
        async with asyncio.timeout(WITHIN):
            while expected not in (answer := (await self.asks(path, method)).text):
                await asyncio.sleep(0.05)
        return answer

    async def becomes(self, status: int, state: str) -> dict[str, Any]:
        """Wait until the whole answers this status, the sick process is in this state, and the healthy one runs."""
        async with asyncio.timeout(WITHIN):
            while True:
                answer = await self.asks("/readyz")
                told: dict[str, Any] = answer.json()
                states = {name: process["state"] for name, process in told["processes"].items()}
                if (answer.status_code, states) == (status, {"sick": state, "healthy": "running"}):
                    return told
                await asyncio.sleep(0.05)

    def pids(self) -> list[int]:
        """Return the ids of the services' processes, as far as they were told."""
        return [line["pid"] for line in self.said("process started")]

    def stop_still(self, name: str) -> None:
        """Let the process of a service do nothing any more."""
        os.kill(self.said("process started", process=name)[-1]["pid"], signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let it go on."""
        os.kill(self.said("process started", process=name)[-1]["pid"], signal.SIGCONT)

    async def ends(self) -> int:
        async with asyncio.timeout(WITHIN):
            return await self.process.wait()

    async def read(self) -> None:
        """Read both streams to their ends, which come when the last process has ended."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_log(self.process.stderr))
            tasks.create_task(self._read_numbers(self.process.stdout))

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.raw.append(line.decode())
            if line.startswith(b"{"):
                self.lines.append(json.loads(line))

    async def _read_numbers(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.done.append(int(line))


@asynccontextmanager
async def isolated(folder: Path, url: str, *arguments: str) -> AsyncIterator[Program]:
    """Run the program with `run --isolate`; whatever is left of it in the end is killed."""
    (folder / "clinic.py").write_text(PROGRAM)
    (port,) = free_ports(1)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    ours = {"PYTHONPATH": str(ROOT), "BUS_URL": url, "BUS_HTTP": f"127.0.0.1:{port}", "BUS_GRACE": "5"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "clinic.py", "run", "--isolate", *arguments),
        cwd=folder,
        env=bare | ours,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    program = Program(process, folder, port)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(program.read())
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            for pid in program.pids():
                # a number is given to another process only after thousands of others
                if _runs(pid):
                    os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return b"clinic.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
