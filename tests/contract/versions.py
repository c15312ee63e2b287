"""Two versions of one app for the tests of the topology, and what a test asks the broker about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from bus import BusUnavailable, Service, Unroutable, discovery, fixed
from bus.topology import Part, Survey
from bus.transport import Subscription

from .stage import WITHIN, Hosted, Log, Placed, Shipped, Stage, staged


APP = "contract"
"""The app's name, as `Stage.hosting` has it."""


def before(log: Log[str], *, fails: bool = False) -> Service:
    """Return the version before: `work` also wants what was shipped, `removed` is still there."""
    service = Service("stock")

    @service.on(Placed, Shipped, retry=fixed(2, 7), name="work")
    async def work(event: Placed | Shipped) -> None:
        log.append(f"before {event.__schema__.type} {event.number}")
        if fails:
            raise ValueError

    @service.on(Placed, name="removed")
    async def removed(placed: Placed) -> None:
        log.append(f"removed {placed.number}")

    return service


def after(log: Log[str]) -> Service:
    """Return the version after: `work` wants less, `removed` is `renamed`, the policy has another step."""
    service = Service("stock")

    @service.on(Placed, retry=fixed(2, 3), name="work")
    async def work(placed: Placed) -> None:
        log.append(f"after {placed.number}")

    @service.on(Placed, name="renamed")
    async def renamed(placed: Placed) -> None:
        log.append(f"renamed {placed.number}")

    return service


def subscriptions(*services: Service) -> list[Subscription]:
    """Return what services subscribe to."""
    events = discovery.named(services)
    return [handler.subscription(events) for service in services for handler in service.handlers]


async def note(stage: Stage, *services: Service, app: str = APP) -> Sequence[Part]:
    """Declare and note, as a worker that starts does."""
    wanted = subscriptions(*services)
    await stage.transport.declare(wanted)
    return await stage.transport.topology.note(app, "test:1", wanted)


async def survey(stage: Stage, *services: Service, app: str = APP) -> Survey:
    """Return the survey of an app with these services."""
    return await stage.transport.topology.survey(app, subscriptions(*services))


async def left(stage: Stage, *services: Service, app: str = APP) -> list[str]:
    """Return what is left over, one line for each part, in order."""
    return sorted(map(line, (await survey(stage, *services, app=app)).left))


def line(part: Part) -> str:
    """Return a part as a line that a test compares."""
    if part.kind == "binding":
        return f"binding {part.name} {part.key}"
    return (
        f"{part.kind} {part.name}"
        + (f" {part.messages}" if part.messages else "")
        + (f" ({part.held})" * bool(part.held))
    )


async def prune(
    stage: Stage, *services: Service, app: str = APP, messages: bool = False, consumers: bool = False
) -> list[str]:
    """Prune all that is left over; return what was removed."""
    wanted = subscriptions(*services)
    topology = stage.transport.topology
    found = (await topology.survey(app, wanted)).left
    done = await topology.prune(app, wanted, found, messages=messages, consumers=consumers)
    return sorted(line(each.part) for each in done if not each.kept)


async def noted(stage: Stage, *services: Service) -> None:
    """Wait until the newest entry of each service is by a worker of this version."""
    async with asyncio.timeout(WITHIN):
        while True:
            newest = []
            # a stream that was declared a moment ago may have no replica yet
            with suppress(BusUnavailable):
                newest = [version for version in (await survey(stage, *services)).versions if version.newest]
            if {version.service for version in newest if version.ours} >= {service.name for service in services}:
                return
            await asyncio.sleep(0.05)


async def is_there(stage: Stage, name: str, *services: Service) -> bool:
    """Tell whether a queue is there that these services declare."""
    return any(part.name == name and part.there is True for part in (await survey(stage, *services)).declared)


async def wanted_by_somebody(stage: Stage, event: Placed | Shipped) -> bool:
    """Publish, and tell whether any queue wanted it."""
    try:
        await stage.bus.publish(event, required=True)
    except Unroutable:
        return False
    return True


@asynccontextmanager
async def hosted(url: str, *services: Service) -> AsyncIterator[tuple[Stage, Hosted]]:
    """Host services in a worker with connections of its own, and wait until it noted what it declares."""
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(staged("rabbitmq", url))
        worker = await stack.enter_async_context(stage.hosting(*services))
        await noted(stage, *services)
        yield stage, worker
