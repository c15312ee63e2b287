"""Versions of a service whose handler wants other arguments, and a migration that a test cuts off."""

from __future__ import annotations

from contextlib import AsyncExitStack
from fnmatch import fnmatch

from bus import Context, Service, discovery
from bus.retry import Policy
from bus.transport import Subscription
from bus.transport.rabbitmq.migration import Moving
from bus.transport.rabbitmq.transport import RabbitMQTransport

from .stage import Log, Placed, Stage


QUEUE = "stock.work"


class Killed(BaseException):
    """What ends a migration in the middle of a step."""


def version(log: Log[str], name: str = "", *, ordered: bool = False, retry: Policy | None = None) -> Service:
    """Return a version of the service whose handler is ordered, or is not."""
    service = Service("stock")
    options = {"retry": retry} if retry is not None else {}

    @service.on(Placed, name="work", ordered_by="note" if ordered else None, **options)
    async def work(placed: Placed, context: Context) -> None:
        log.append(f"{name}{placed.number}")
        if retry is not None and context.attempt == 1:
            raise ValueError

    return service


def subscription(service: Service) -> Subscription:
    """Return the subscription of the only handler."""
    (handler,) = service.handlers
    return handler.subscription(discovery.named([service]))


async def migrated(stage: Stage, service: Service) -> int:
    """Migrate as the command does."""
    return await stage.transport.topology.migrate("contract", subscription(service), lambda what, moved: None)


async def killed(stage: Stage, service: Service, at: str) -> bool:
    """Migrate, and be killed at a step, whose name matches a pattern; tell whether there was such a step."""
    assert isinstance(stage.transport, RabbitMQTransport)
    topology = stage.transport.topology
    async with topology._record() as (streams, record):
        link = await streams.link()

        def tell(what: str, moved: int) -> None:
            if fnmatch(what, at):
                # without a goodbye: nothing that is done here on the way out reaches the broker
                link.give_up("killed")
                raise Killed

        try:
            async with AsyncExitStack() as stack:
                turn = await topology._turn_soon(stack, streams)
                moving = Moving(turn.link, record, topology._names, "contract", subscription(service))
                await moving.run(tell)
        except Killed:
            return True
    return False
