"""What each fault makes a sick handler do, and how a healthy one reports: the same for every contender."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import struct
import time
from pathlib import Path


SERVICES = ("first", "second", "sick")
"""Two healthy services, and the one that has the fault."""
WELL = 0.005
"""Seconds that the sick handler takes while it is well."""
BLOCKED = 2.0
"""Seconds for which it blocks the loop."""
LEAKED = 1 << 20
"""Bytes that are lost by each message."""
MOST_LEAKED = 600 << 20
"""Bytes that may be lost until the kernel would kill the process."""
RECORD = struct.Struct("<dd")
LOG, RESOURCE = "CONTAINMENT_LOG", "CONTAINMENT_RESOURCE"
"""Environment: the folder of the records, and the port of the sick service's resource."""

_lost: list[bytes] = []


async def work(fault: str) -> None:
    """Do what the sick handler does with this fault; with none, what it does while it is well."""
    match fault:
        case "raises":
            raise RuntimeError("it always raises")
        case "hangs":
            await asyncio.Event().wait()
        case "slow":
            await asyncio.sleep(100 * WELL)
        case "blocks":
            time.sleep(BLOCKED)
        case "leaks":
            _leak()
        case "segfault":
            ctypes.string_at(0)
        case "unavailable":
            await use()
        case _:
            await asyncio.sleep(WELL)


def _leak() -> None:
    """Lose memory; die as by the hand of the kernel's killer where there is none left."""
    if not _lost:
        bound = _address_space() + MOST_LEAKED
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    try:
        _lost.append(b"\1" * LEAKED)
    except MemoryError:
        os.kill(os.getpid(), signal.SIGKILL)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


async def use(port: int = 1) -> None:
    """Connect to the resource, by default to one that is not there."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


class Report:
    """Writes down when a message was published and handled, so that neither a crash nor a reader holds it up."""

    def __init__(self, service: str) -> None:
        self._file = os.open(records(os.environ[LOG], service), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def handled(self, at: float) -> None:
        """Note that the message which was published at this time has been handled now."""
        os.write(self._file, RECORD.pack(at, time.monotonic()))


def records(folder: str, service: str) -> Path:
    """Return the file of a service's records."""
    return Path(folder, f"{service}.records")


def read(folder: str, service: str) -> dict[float, float]:
    """Return when the messages of a service were first handled, by the time at which they were published."""
    path = records(folder, service)
    found: dict[float, float] = {}
    for at, done in RECORD.iter_unpack(path.read_bytes()) if path.exists() else ():
        found.setdefault(at, done)
    return found
