"""Child: a worker's process as its supervisor sees it: started, asked, signalled, and its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from .. import clock
from ..endpoint import Answer
from ..logs import logger
from . import supervised


WITHIN: Final = 1.0
"""Seconds that a process has to answer."""
LONGEST: Final = 2**22
"""Bytes of the longest line that a process may tell."""
MOST_SHOWN: Final = 100


class Child:
    """A process that was started. `told` is what it said unasked: by name, the last value."""

    def __init__(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        self.pid = process.pid
        self.told: dict[str, Any] = {}
        self._process = process
        self._writer = writer
        self._ids = itertools.count()
        self._asked: dict[int, asyncio.Future[Answer]] = {}

    async def ended(self) -> int:
        """Wait for its end and return its exit status; a signal's number is negative."""
        return await self._process.wait()

    def signal(self, number: int) -> None:
        """Send it a signal; nothing happens where it has ended."""
        _signal(self._process, number)

    async def ask(self, method: str, path: str) -> Answer | None:
        """Return its answer; None where it gives none in time, or does not answer yet: it does not do it later."""
        if "answering" not in self.told:
            return None
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        # what is to be done may wait for the event loop first
        until = clock.monotonic() + (WITHIN if method == "GET" else WITHIN - supervised.WITHIN)
        question = {"id": number, "method": method, "path": path, "until": until}
        try:
            self._writer.write(json.dumps(question).encode() + b"\n")
            async with asyncio.timeout(WITHIN):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Read what it tells, until it ends; one that tells what nobody understands is not listened to any more."""
        try:
            async for line in reader:
                if not line.endswith(b"\n"):
                    return  # it was killed while it told something
                self._hear(json.loads(line))
        except ConnectionError:
            return
        except (ValueError, RecursionError) as error:
            logger().error("process not understood", pid=self.pid, error=str(error))

    def _hear(self, said: Any) -> None:
        match said:
            case {"id": int(number), "status": int(status), "body": str() | dict() as body}:
                if (asked := self._asked.get(number)) is not None and not asked.done():
                    asked.set_result(Answer(status, body))
            case {"answering": True}:
                self.told["answering"] = True
            case {"started": int(handlers)}:
                self.told["started"] = handlers
            case {"mistake": list(lines)} if _texts(lines):
                self.told["mistake"] = lines
            case {"handlers": dict(known)} if all(map(_texts, known.values())):
                self.told["handlers"] = known
            case _:
                raise ValueError(f"no worker says {str(said)[:MOST_SHOWN]}")


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    if process.returncode is None:
        # not by Python's send_signal, which may take the exit status away from whoever waits for it
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _texts(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(each, str) for each in said)


@asynccontextmanager
async def spawned(name: str, command: Sequence[str]) -> AsyncIterator[Child]:
    """Start a process of its own session, so that a terminal's Ctrl-C comes to it through its supervisor alone.

    It inherits standard output and error. On the way out it is killed if it still runs. Raises OSError where no process
    can be started.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        descriptor = theirs.fileno()
        process = await asyncio.create_subprocess_exec(
            *command,
            f"--supervised={name}={descriptor}",
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
        theirs.close()
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
            child = Child(process, writer)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(child.read(reader), name=f"read {name}")
                try:
                    yield child
                    # what it told last, unless a process of its own holds the socket open
                    await asyncio.wait([reading], timeout=WITHIN)
                finally:
                    reading.cancel()
                    writer.close()
        finally:
            _signal(process, signal.SIGKILL)
            await process.wait()
