"""Opening: a service's resources and its store, tried again until they are there; nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from .errors import ConfigurationError
from .resources import Key, Resources
from .service import Service, store_of
from .store import OpenStore


FIRST: Final = 0.5
LONGEST: Final = 30.0
"""Seconds between two tries: from the first, doubled up to the longest, each shortened by chance."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a service has open; to leave `scope` alone closes the store, as the end of its process would."""

    resources: Resources
    store: OpenStore | None = None
    scope: AbstractAsyncContextManager[OpenStore] | None = None


@asynccontextmanager
async def opened(
    service: Service, provided: Mapping[Key, Any], random: Random, failed: Callable[[Exception, float], None]
) -> AsyncIterator[Opened]:
    """Open what a service has, as often as it takes; `failed` is told of each try in vain, and of the wait.

    Raises ConfigurationError where a resource or the store does: what is set wrong stays wrong.
    """
    async with AsyncExitStack() as stack:
        wait = FIRST
        while True:
            try:
                there = await _try(service, provided, stack)
            except ConfigurationError:
                raise
            except Exception as error:
                delay = wait * random.uniform(0.5, 1)
                failed(error, delay)
                await asyncio.sleep(delay)
                wait = min(2 * wait, LONGEST)
            else:
                break
        yield there


async def _try(service: Service, provided: Mapping[Key, Any], stack: AsyncExitStack) -> Opened:
    """Open all of it on the stack, or nothing."""
    resources, store = Resources(service.resources, provided), store_of(service, provided)
    async with AsyncExitStack() as one:
        await one.enter_async_context(resources.opened())
        there = Opened(resources)
        if store is not None:
            scope = store.opened()
            there = Opened(resources, await one.enter_async_context(scope), scope)
        stack.push_async_exit(one.pop_all())
    return there
