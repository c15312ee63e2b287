"""Opening: a service's resources and its store, all of them or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from .resources import Key, Resources
from .service import Service, store_of
from .store import OpenStore


@dataclass(frozen=True, slots=True)
class Opened:
    """What a service has open; to leave `scope` alone closes the store, as the end of its process would."""

    resources: Resources
    store: OpenStore | None = None
    scope: AbstractAsyncContextManager[OpenStore] | None = None


@asynccontextmanager
async def opened(service: Service, provided: Mapping[Key, Any], closes: Callable[[str], None]) -> AsyncIterator[Opened]:
    """Open what a service has, and close it; `closes` is told what begins to close, in words."""
    resources, store = Resources(service.resources, provided, closes), store_of(service, provided)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(resources.opened())
        there = Opened(resources)
        if store is not None:
            scope = store.opened()
            there = Opened(resources, await stack.enter_async_context(scope), scope)
            stack.callback(closes, f"its store {store!r}")
        yield there
