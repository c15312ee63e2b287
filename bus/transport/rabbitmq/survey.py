"""Looking at what is there, and telling what is left over: the record says what was declared, the broker what is there.

AMQP lists nothing, but it answers when it is asked for a name. Hundreds are asked for at a time, over several channels,
as each no closes one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pamqp import commands

from ...settings import NAME, RESERVED
from ...topology import Held, Part, Survey, Version
from .channel import Channel, ChannelClosed
from .desk import Desk
from .link import Link
from .moves import aside, is_moving
from .plan import parts
from .record import BINDING, EXCHANGE, QUEUE, Declaration, Declared, Fold, Item
from .stream import Streams
from .topology import Names


AT_ONCE: Final = 16
"""Channels that are asked over."""


class Seen(NamedTuple):
    """What the broker says of a name; `there` is None where it does not say."""

    there: bool | None
    messages: int = 0
    consumers: int = 0


async def look(link: Link, wanted: Sequence[Part]) -> list[Seen]:
    """Return what the broker says of each. Raises LinkLost."""
    found = [Seen(None)] * len(wanted)
    todo = iter(enumerate(wanted))

    async def ask() -> None:
        channel: Channel | None = None
        for number, part in todo:
            if channel is None or channel.error is not None:
                channel = await link.channel()
            try:
                found[number] = _seen(await channel.rpc(_question(part)))
            except ChannelClosed as error:
                # some versions let nobody look who may not configure
                found[number] = Seen(False if error.code == 404 else None)
        if channel is not None:
            channel.leave()

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(AT_ONCE, len(wanted))):
                tasks.create_task(ask(), name="look")
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return found


def _question(part: Part) -> Any:
    if part.kind == "exchange":
        return commands.Exchange.Declare(exchange=part.name, passive=True)
    return commands.Queue.Declare(queue=part.name, passive=True)


def _seen(answer: Any) -> Seen:
    if isinstance(answer, commands.Queue.DeclareOk):
        return Seen(True, answer.message_count or 0, answer.consumer_count or 0)
    return Seen(True)


async def looked(link: Link, wanted: Sequence[Part]) -> list[Part]:
    """Return the parts with what the broker says of them. Raises LinkLost."""
    asked = [part for part in wanted if part.kind != "binding"]
    asked += [replace(part, name=name) for part in asked if part.held == "moving" for name in aside(part.name)]
    seen = dict(zip(((part.kind == "exchange", part.name) for part in asked), await look(link, asked), strict=True))

    def told(part: Part) -> Part:
        found = seen[part.kind == "exchange", part.name]
        if part.held == "moving":
            every = [found, *(seen[False, name] for name in aside(part.name))]
            there = any(each.there for each in every)
            found = Seen(there, sum(each.messages for each in every), found.consumers)
        return replace(part, **found._asdict())

    return [part if part.kind == "binding" else told(part) for part in wanted]


async def open_letters(streams: Streams, names: Names, service: str) -> int:
    """Return how many dead letters of a service are open as of now."""
    desk = Desk(streams, names, service)
    try:
        async with desk.lock:
            fold = await desk.look()
        return sum(map(fold.is_open, fold.rows.values()))
    finally:
        desk.close()


async def generations(link: Link, names: Names, services: Sequence[str]) -> dict[str, int]:
    """Return the newest generation of each service's dead letters."""
    newest, open_ones = dict.fromkeys(services, 0), list(services)
    while open_ones:
        announced = [Part(kind="exchange", name=names.letters(each, newest[each] + 1)) for each in open_ones]
        seen = await look(link, announced)
        open_ones = [service for service, found in zip(open_ones, seen, strict=True) if found.there]
        for service in open_ones:
            newest[service] += 1
    return newest


async def survey(link: Link, names: Names, fold: Fold, app: str, wanted: Sequence[Declaration], broker: str) -> Survey:
    """Return what the code declares and what other versions of it left. Raises LinkLost."""
    ours = {declared.service: declared for declared in wanted}
    newest = await generations(link, names, list({*ours, *fold.services(app)}))
    declared = list(parts(names, wanted, newest))
    left = [*left_over(names, fold, app, ours), *_streams(names, fold, app, ours, newest)]
    every = await looked(link, [*declared, *left])
    return Survey(
        app=app,
        broker=broker,
        declared=tuple(
            # a stream's count is behind, and this one was read just now
            replace(part, messages=fold.next) if part.kind == "record" else part
            for part in every[: len(declared)]
        ),
        left=tuple(_judged(every[len(declared) :], {part.name: part for part in every if part.kind == "queue"})),
        versions=tuple(_versions(fold, app, ours)),
    )


def left_over(names: Names, fold: Fold, app: str, ours: dict[str, Declaration]) -> Iterator[Part]:
    """Yield what stands in the record for an app, and neither this code nor another app declares."""
    wanted = frozenset[Item]().union(*(declared.items for declared in ours.values()))
    others = fold.others(app)
    standing = {i: by for i, by in fold.standing(app).items() if i not in wanted and i not in others}
    for item, by in sorted(standing.items(), key=lambda each: (each[1].declaration.service, each[0])):
        if item.kind == BINDING and Item(QUEUE, item.name) in standing:
            continue  # it goes with its queue
        if not _own(names, by.declaration.service, item.name):
            continue  # anybody may write into the record, and name what is not a service's to remove
        yield from _left(names, fold, item, by, standing, ours)


def _streams(
    names: Names, fold: Fold, app: str, ours: dict[str, Declaration], newest: dict[str, int]
) -> Iterator[Part]:
    """Yield the streams of the services that are gone as a whole, and that no other app has."""
    theirs = {service for of_app, service in fold.declared if of_app != app}
    for service in fold.services(app):
        last = fold.last(app, service)
        if service not in ours and service not in theirs and last is not None and _is_service(service):
            yield _of(Part(kind="suspects", name=names.suspects(service), service=service), last)
            letters = names.letters(service, newest[service])
            yield _of(Part(kind="letters", name=letters, service=service), last)


def _left(
    names: Names, fold: Fold, item: Item, by: Declared, standing: dict[Item, Declared], ours: dict[str, Declaration]
) -> Iterator[Part]:
    service = by.declaration.service
    part = Part(kind="binding", name=item.name, service=service, exchange=item.exchange, key=item.key)
    if item.kind == QUEUE:
        step = any(each.name == item.name for each in by.declaration.steps)
        bound = tuple(sorted((i.exchange, i.key) for i in standing if i.kind == BINDING and i.name == item.name))
        part = Part(kind="step" if step else "queue", name=item.name, service=service, bindings=bound)
    elif item.kind == EXCHANGE:
        if item.name == names.dead(service):
            return  # it goes with the dead letters
        part = Part(kind="exchange", name=item.name, service=service)
    last, own = fold.last(by.declaration.app, service), ours.get(service)
    # what the newest version of a service declares is not left over for a code that is another
    later = own is not None and last is not None and last.declaration.digest != own.digest
    held: Held = "later" if later and last is not None and item in last.declaration.items else ""
    if part.kind == "queue" and is_moving(fold, item.name):
        held = "moving"
    yield replace(_of(part, by), held=held)


def _is_service(service: str) -> bool:
    return NAME.fullmatch(service) is not None and service not in RESERVED


def _own(names: Names, service: str, name: str) -> bool:
    return _is_service(service) and name.startswith(names.of(f"{service}."))


def _of(part: Part, by: Declared) -> Part:
    return replace(part, version=by.version, worker=by.worker, at=by.at)


def _judged(left: Sequence[Part], queues: dict[str, Part]) -> Iterator[Part]:
    """Yield what is there of what is left over, and say why a prune would leave it."""
    for part in left:
        if part.kind == "binding":
            queue = queues.get(part.name)
            if queue is None or queue.there is not False:
                yield part
        elif part.there is not False:
            held: Held = part.held
            if part.kind in ("queue", "step"):
                held = held or ("consumers" if part.consumers else "messages" if part.messages else "")
            yield replace(part, held=held)


def _versions(fold: Fold, app: str, ours: dict[str, Declaration]) -> Iterator[Version]:
    for (of_app, service), entries in fold.declared.items():
        for entry in entries.values() if of_app == app else ():
            own = ours.get(service)
            yield Version(
                service=service,
                version=entry.version,
                worker=entry.worker,
                at=entry.at,
                ours=own is not None and own.digest == entry.declaration.digest,
                newest=entry is fold.last(app, service),
            )
