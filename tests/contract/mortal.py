"""A worker in a process of its own, which tests kill: `python -m tests.contract.mortal`."""

from __future__ import annotations

import asyncio
import random
import signal

import orjson

from bus import Context, Message, Service, client, discovery, fixed
from bus import settings as environment
from bus.logs import configure
from bus.middleware.logging import logging
from bus.worker import Worker

from .stage import Placed, Shipped


def mortal() -> Service:
    """Return a service that is slow now and then, fails now and then, and publishes a result for each message."""
    service = Service("mortal", concurrency=32)

    @service.on(Placed, retry=fixed(10, 0.1))
    async def work(placed: Placed, context: Context) -> Shipped:
        await asyncio.sleep(random.uniform(0, 0.02))
        if placed.number % 20 == 0 and context.attempt == 1:
            raise ConnectionError("once")
        return Shipped(number=placed.number)

    return service


def finished(message: Message) -> int:
    """Return the number of the order whose result this is."""
    return int(orjson.loads(message.body)["number"])


async def main() -> None:
    settings = environment.read()
    configure(settings.log_level, "json")
    stop, service = asyncio.Event(), mortal()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with client.transport(settings) as transport:
        events = discovery.named([service])
        await Worker(transport, [service], app="m", events=events, settings=settings, log=logging()).run(stop)


if __name__ == "__main__":
    asyncio.run(main())
