"""Opening: a service's resources, tried again until they are there; nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Final

from .errors import ConfigurationError
from .resources import Key, Resources
from .service import Service


FIRST: Final = 0.5
LONGEST: Final = 30.0
"""Seconds between two tries: from the first, doubled up to the longest, each shortened by chance."""


@asynccontextmanager
async def opened(
    service: Service, provided: Mapping[Key, Any], random: Random, failed: Callable[[Exception, float], None]
) -> AsyncIterator[Resources]:
    """Open the resources of a service, as often as it takes; `failed` is told of each try in vain, and of the wait.

    Raises ConfigurationError where a resource does: what is set wrong stays wrong.
    """
    async with AsyncExitStack() as stack:
        wait = FIRST
        while True:
            resources = Resources(service.resources, provided)
            try:
                await stack.enter_async_context(resources.opened())
            except ConfigurationError:
                raise
            except Exception as error:
                delay = wait * random.uniform(0.5, 1)
                failed(error, delay)
                await asyncio.sleep(delay)
                wait = min(2 * wait, LONGEST)
            else:
                break
        yield resources
