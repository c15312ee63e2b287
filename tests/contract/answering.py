"""A worker in a process of its own that dies over its first request: `python -m tests.contract.answering FILE`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from bus import Event, Service, client, discovery
from bus import settings as environment
from bus.middleware.logging import logging
from bus.worker import Worker


class Asked(Event, type="quote.asked"):
    number: int = 0


class Quoted(Event, type="quote.given", version=2):
    number: int
    by: str = "quotes"


def answering(died: Path) -> Service:
    """Return a service that kills its process over the first request that it ever gets, and answers the others."""
    service = Service("quotes")

    @service.on(Asked)
    async def quote(asked: Asked) -> Quoted:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Quoted(number=asked.number)

    return service


async def main() -> None:
    settings, service = environment.read(), answering(Path(sys.argv[1]))
    async with client.transport(settings) as transport:
        events = discovery.named([service])
        worker = Worker(transport, [service], app="a", events=events, settings=settings, log=logging())
        await worker.run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main())
