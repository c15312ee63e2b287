"""What the code of an app wants at the broker, as declarations for the record and as parts to look for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pamqp import commands

from ...topology import CASCADE, Kind, Part
from .. import Subscription
from . import delay
from .record import Declaration
from .topology import Names, Queue, queue, steps


def declarations(names: Names, app: str, subscriptions: Sequence[Subscription]) -> list[Declaration]:
    """Return what each service declares, in the order of the subscriptions."""
    by_service: dict[str, list[Subscription]] = {}
    for subscription in subscriptions:
        by_service.setdefault(subscription.service, []).append(subscription)
    return [
        Declaration(
            app=app,
            service=service,
            queues=tuple(queue(names, subscription) for subscription in of_service),
            steps=tuple({step.name: step for each in of_service for step in steps(names, each)}.values()),
            exchanges=(
                (names.retry(service), "topic"),
                (names.back(service), "topic"),
                (names.dead(service), "fanout"),
            ),
        )
        for service, of_service in by_service.items()
    ]


def parts(names: Names, wanted: Sequence[Declaration], generations: dict[str, int]) -> Iterator[Part]:
    """Yield everything that an app needs; `generations` has the newest of each service's dead letters."""
    yield Part(kind="exchange", name=names.events)
    for declared in wanted:
        service = declared.service
        for name, _ in declared.exchanges:
            yield Part(kind="exchange", name=name, service=service)
        yield from (_part("queue", service, each) for each in declared.queues)
        yield from (_part("step", service, each) for each in declared.steps)
        letters = names.letters(service, generations.get(service, 0))
        yield Part(kind="letters", name=letters, service=service, bindings=((names.dead(service), ""),))
        yield Part(kind="suspects", name=names.suspects(service), service=service)
    for command in delay.parts(names):
        if isinstance(command, commands.Queue.Declare):
            yield Part(kind="delay", name=command.queue, service=CASCADE)
        elif isinstance(command, commands.Exchange.Declare):
            yield Part(kind="exchange", name=command.exchange, service=CASCADE)
    yield Part(kind="record", name=names.record)


def _part(kind: Kind, service: str, declared: Queue) -> Part:
    onward = str(declared.arguments["x-dead-letter-exchange"])
    return Part(kind=kind, name=declared.name, service=service, bindings=declared.bindings, onward=onward)
