"""The stall's services."""

from __future__ import annotations

from bus import Message, Service, exponential, fixed

from .events import Cooked, Ordered


kitchen = Service("kitchen", concurrency=4)
till = Service("till")


@kitchen.on(Ordered, retry=fixed(3, 2), timeout=5, concurrency=1)
async def cook(ordered: Ordered) -> Cooked:
    return Cooked(dish=ordered.dish)


@till.on(Ordered, retry=exponential(attempts=2, first=1))
async def charge(ordered: Ordered) -> None: ...


@till.on("stall.[red]cooked", ordered_by="subject", ordered_window=20)
async def note(message: Message) -> None: ...


@till.on("*.cooked")
async def audit(message: Message) -> None: ...
