"""Workers that poison kills, one life after the other: `python -m tests.contract.poisoned [unstarted | ordered]`.

Each life is a fork, so that the imports are paid for once. With `unstarted`, one life ends by SIGKILL the moment its
first delivery arrives, before anything runs. With `ordered`, the sick handler is ordered by the note of its messages.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from typing import Any

from bus import Service, client, discovery, fixed
from bus import settings as environment
from bus.logs import configure
from bus.middleware.logging import logging
from bus.transport.rabbitmq.consumer import Inbox
from bus.worker import Worker

from .stage import Event, Placed, Shipped


MOST_LIVES = 60
EXITS, CRASHES = 13, 57
"""Numbers of the messages that kill."""


class Done(Event, type="work.done"):
    service: str
    number: int


def services(*, ordered: bool = False) -> tuple[Service, Service]:
    """Return a service that two messages kill, and its healthy neighbour in the same process."""
    sick, healthy = Service("sick"), Service("healthy")

    @sick.on(Placed, retry=fixed(3, 0.1), ordered_by="note" if ordered else None)
    async def work(placed: Placed) -> Done:
        await asyncio.sleep(0.001)
        if placed.number == EXITS:
            os._exit(3)
        if placed.number == CRASHES:
            ctypes.string_at(0)
        return Done(service="sick", number=placed.number)

    @healthy.on(Shipped)
    async def neighbour(shipped: Shipped) -> Done:
        await asyncio.sleep(0.001)
        return Done(service="healthy", number=shipped.number)

    return sick, healthy


async def live(*, ordered: bool) -> None:
    settings = environment.read()
    configure(settings.log_level, "json")
    stop, hosted = asyncio.Event(), services(ordered=ordered)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with client.transport(settings) as transport:
        events = discovery.named(hosted)
        await Worker(transport, hosted, app="p", events=events, settings=settings, log=logging()).run(stop)


def killed_by_the_first(inbox: Inbox, received: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(*, unstarted: bool, ordered: bool) -> int:
    if unstarted:
        Inbox.put = killed_by_the_first  # type: ignore[method-assign]
    for _ in range(1 if unstarted else MOST_LIVES):
        child = os.fork()
        if not child:
            asyncio.run(live(ordered=ordered))
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda *_, child=child: os.kill(child, signal.SIGTERM))  # type: ignore[misc]
        _, status = os.waitpid(child, 0)
        if status == 0:
            return 0
    return 0 if unstarted else 1


if __name__ == "__main__":
    sys.exit(main(unstarted="unstarted" in sys.argv, ordered="ordered" in sys.argv))
