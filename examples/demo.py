"""The shop's demo: 200 orders through every service, on the memory bus or on the broker of BUS_URL.

`python app.py demo` shows what happens, compares what the services have in the end with what went in, and exits 1
where it does not add up.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from urllib.parse import urlsplit
from uuid import uuid4

from bus import App, Bus, BusUnavailable, Letter, Message, Settings
from bus.client import transport as open_transport
from bus.failure import first_leaf
from bus.message import Outgoing
from bus.settings import read
from bus.transport import Transport
from events.order import OrderPlaced

from .shop.books import close
from .shop.screen import Screen
from .shop.stage import Stage, orders
from .shop.watch import Watch


ORDERS = 200
PACE = 0.01
"""Seconds between two orders, so that a reader can watch."""
START = 15.0
"""Seconds that the broker has to answer."""
PATIENCE = 60.0
"""Seconds after which what has not come is given up."""
LONGEST_NAME = 60
"""Letters of a namespace."""


async def demo(app: App) -> int:
    """Run the shop: place 200 orders, show retries and dead letters, and check the books. Exits 1 on a mismatch."""
    adds_up = await run(app, orders(ORDERS, Random(7)))
    return 0 if adds_up else 1


async def run(app: App, placed: Sequence[OrderPlaced], *, pace: float = PACE, patience: float = PATIENCE) -> bool:
    """Run the demo with these orders; returns whether all adds up. Raises BusUnavailable where no broker answers."""
    settings = read()
    # a namespace of its own: a worker that runs on the same broker must not take the demo's messages
    settings = replace(settings, url=settings.url or "memory://", namespace=_namespace(settings.namespace))
    screen, stage = Screen(len(placed)), Stage()
    watch = Watch(app.services, app.events, tell=screen.tell, finished=screen.advance)
    screen.say(_where(settings))
    problems: list[str] = []
    async with open_transport(settings) as transport:
        bus = Bus(transport, settings, source="/shop")
        with screen.bar():
            try:
                async with asyncio.timeout(patience), _hosting(app, transport, settings, stage, watch):
                    await _place(placed, bus, transport, watch, pace)
                    await watch.done.wait()
            except TimeoutError:
                problems.append(_overdue(watch, patience))
        if not watch.started:
            raise BusUnavailable(
                f"the broker did not answer within {START:g} s, so nothing was placed. Is BUS_URL right?", {}
            )
        letters = await _letters(app, transport, watch)
    books = close(placed, stage, letters, watch)
    problems += books.problems
    screen.table(books, watch.rows)
    for problem in problems:
        screen.say(f"does not add up: {problem}", "bold red")
    if not problems:
        screen.say("Everything adds up: orders, stock, money, mail and dead letters.", "green")
    return not problems


@asynccontextmanager
async def _hosting(
    app: App, transport: Transport, settings: Settings, stage: Stage, watch: Watch
) -> AsyncIterator[None]:
    stop, started = asyncio.Event(), asyncio.Event()
    worker = app.worker(transport, app.services, settings, provided=stage.provided(), log=watch.middleware)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run(stop, started.set))
            async with asyncio.timeout(START):
                await started.wait()
            try:
                yield
            finally:
                stop.set()
    except BaseExceptionGroup as group:
        # whoever runs the demo cares for what went wrong, not for the tasks that it went wrong in
        raise first_leaf(group) from None


async def _place(placed: Sequence[OrderPlaced], bus: Bus, transport: Transport, watch: Watch, pace: float) -> None:
    for order in placed:
        watch.expect(str(order.order_id), str(order.order_id), "order.placed")
    malformed = _malformed(order=placed[0])
    watch.expect(str(placed[0].order_id), malformed.id, malformed.type)
    await transport.publish([Outgoing(malformed)])
    for order in placed:
        await bus.publish(order, id=str(order.order_id))
        await asyncio.sleep(pace)


def _malformed(order: OrderPlaced) -> Message:
    """Return a message that says it is an order, and is none: what a broken client may send beside the order itself."""
    return Message(
        id=str(uuid4()),
        type="order.placed",
        version=1,
        source="/elsewhere",
        time=datetime.now(UTC),
        body=b'{"order_id": "none", "lines": []}',
        correlation_id=str(order.order_id),
    )


async def _letters(app: App, transport: Transport, watch: Watch) -> list[Letter]:
    return [
        letter
        for service in app.services
        async for letter in transport.dead_letters.browse(service.name)
        if watch.knows(letter.message)
    ]


def _overdue(watch: Watch, patience: float) -> str:
    owed = [f"{name} ({count})" for name, count in watch.under_way().items()]
    return f"after {patience:g} s these deliveries had not come: {', '.join(owed)}"


def _namespace(given: str) -> str:
    return f"demo_{given}"[:LONGEST_NAME] if given else "demo"


def _where(settings: Settings) -> str:
    url = urlsplit(settings.url)
    if url.scheme == "memory":
        return "The shop runs on the memory bus: nothing to install, and gone with this process."
    letters = f"BUS_NAMESPACE={settings.namespace} python app.py dead list"
    return f"The shop runs on {url.hostname}; its dead letters stay there: {letters}"
