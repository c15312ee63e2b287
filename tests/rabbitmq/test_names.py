"""The broker's name is looked up where no handler is in the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from bus.transport.rabbitmq.administration import administration
from bus.transport.rabbitmq.link import Link

from .links import address_of


@contextmanager
def threads_that_hang() -> Iterator[None]:
    """Leave no thread of the loop's own pool free."""
    until = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        loop.run_in_executor(None, until.wait)
        try:
            yield
        finally:
            until.set()


async def test_a_name_is_looked_up_though_all_threads_of_the_loop_hang(vhost: str) -> None:
    address = replace(address_of(vhost), host="localhost")
    with threads_that_hang():
        await (await Link.connect(address)).aclose()
        async with administration([address]) as connection:
            assert not connection.is_closed
