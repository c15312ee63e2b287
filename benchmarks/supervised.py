"""A plain supervisor: what ends is started again, soon at first and later more slowly. Both contenders get the same."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path


FIRST, LONGEST, LIVED = 0.25, 30.0, 60.0
"""Seconds as `run --isolate` has them: until the first start after an end, at most, and of a life after which the waits
begin anew."""
STOPS_WITHIN = 10.0


@asynccontextmanager
async def supervised(command: Sequence[str], environment: Mapping[str, str], log: Path) -> AsyncIterator[None]:
    """Keep a command running meanwhile; in the end it gets a signal, and then no choice."""
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(_keep(command, environment, log))
        try:
            yield
        finally:
            keeping.cancel()


async def _keep(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    wait = FIRST
    while True:
        began = time.monotonic()
        with log.open("a") as out:
            # a group of its own, so that what it starts ends with it
            process = await asyncio.create_subprocess_exec(
                *command, env=dict(environment), stdout=out, stderr=out, start_new_session=True
            )
        try:
            await process.wait()
        finally:
            await _end(process)
        wait = FIRST if time.monotonic() - began > LIVED else wait
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and what it started, also while this task is being cancelled."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOPS_WITHIN):
                await process.wait()
        except TimeoutError:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    await process.wait()
