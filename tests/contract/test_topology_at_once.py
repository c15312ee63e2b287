"""L3, L7: changing the topology beside a migration that was cut off, somebody else's turn, or an old replica."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aio_pika
import pytest

from bus import BusUnavailable, Reject, Service, fixed
from bus.transport.rabbitmq import admin, migration
from bus.transport.rabbitmq import prune as prunes
from bus.transport.rabbitmq.admin import RabbitMQTopology
from bus.transport.rabbitmq.alone import alone
from bus.transport.rabbitmq.migration import Moving

from .moved import QUEUE, killed, migrated, subscription, version
from .stage import Log, Placed, Shipped, Stage
from .versions import APP, before, hosted, left, note, prune, subscriptions


@pytest.fixture(autouse=True)
def _nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "YOUNG", 0.0)
    for each in (migration, prunes):
        monkeypatch.setattr(each, "ROUTED_WITHIN", 0.0)


def ordered(log: Log[str]) -> Service:
    """Return a version whose only handler is ordered, and wants what was shipped too."""
    service = Service("stock")

    @service.on(Placed, Shipped, name="work", ordered_by="number")
    async def work(event: Placed | Shipped) -> None:
        log.append(f"{event.number}")

    return service


async def test_l7_a_prune_leaves_a_queue_whose_migration_was_cut_off_until_that_is_over(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    without = Service("stock")

    @without.on(Shipped, name="other")
    async def other(shipped: Shipped) -> None: ...

    await note(rabbitmq, version(log))
    await rabbitmq.bus.publish(Placed(number=1), Placed(number=2))
    assert await killed(rabbitmq, version(log, ordered=True), "deleted the old queue")
    # the version without the handler says what fills there, and by what it is ended
    (told,) = await note(rabbitmq, without)
    await rabbitmq.bus.publish(Placed(number=3))
    assert (told.name, told.held, told.messages) == (QUEUE, "moving", 2)
    assert await left(rabbitmq, without) == [f"queue {QUEUE} 3 (moving)"]
    assert await prune(rabbitmq, without, messages=True, consumers=True) == []
    await migrated(rabbitmq, version(log, ordered=True))
    assert await rabbitmq.ready(QUEUE) == 3
    assert await prune(rabbitmq, without, messages=True) == [f"queue {QUEUE} 3 (messages)"]
    assert await left(rabbitmq, without) == []


@pytest.mark.parametrize("who", ["an apply", "a worker that starts"])
async def test_l3_whoever_declares_after_a_migration_was_cut_off_leaves_its_queue_alone(
    rabbitmq: Stage, who: str
) -> None:
    log: Log[str] = Log()
    # what a worker brings back that was pruned, it declares once more when it notes that
    await note(rabbitmq, before(log))
    await note(rabbitmq, version(log))
    await prune(rabbitmq, version(log))
    await rabbitmq.bus.publish(Placed(number=0), Placed(number=1))
    assert await killed(rabbitmq, ordered(log), "deleted the old queue")
    if who == "an apply":
        (fault,) = await rabbitmq.transport.topology.apply(APP, subscriptions(ordered(log)))
        assert f"python app.py topology migrate {QUEUE}" in str(fault)
    else:
        await note(rabbitmq, ordered(log))
    await rabbitmq.bus.publish(Placed(number=2))
    await migrated(rabbitmq, ordered(log))
    assert await rabbitmq.ready(QUEUE) == 3
    await rabbitmq.bus.publish(Shipped(number=3))
    async with rabbitmq.hosting(ordered(log)):
        await log.reaches(4)
    assert log == ["0", "1", "2", "3"]


async def test_l3_an_apply_without_a_turn_says_so(rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    log: Log[str] = Log()
    monkeypatch.setattr(admin, "APPLIED_WITHIN", 0.2)
    topology = rabbitmq.transport.topology
    assert isinstance(topology, RabbitMQTopology)
    async with topology._record() as (streams, _), alone(streams, *topology._turn()):
        with pytest.raises(LookupError, match="somebody else changes the topology just now: run it again"):
            await topology.apply(APP, subscriptions(before(log)))


async def test_l3_who_lost_the_turn_does_not_say_that_a_migration_is_over(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    topology, new = rabbitmq.transport.topology, subscription(version(log, ordered=True))
    assert isinstance(topology, RabbitMQTopology)
    async with topology._record() as (streams, record):
        link = await streams.link()

        def lose(what: str, moved: int) -> None:
            if what == "deleted what stood aside":
                link.give_up("lost")

        with suppress(ConnectionError, BusUnavailable):
            await Moving(link, record, topology._names, APP, new).run(lose)
    assert (await topology.migration(APP, new)).resumed
    await migrated(rabbitmq, version(log, ordered=True))


async def test_l7_a_letter_that_comes_while_its_service_is_pruned_stays(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    begun: Log[int] = Log()
    gone = Service("gone")

    @gone.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()
        raise Reject("no")

    remove = prunes.Removal.all

    async def given_up(removal: prunes.Removal, chosen: Any) -> Any:
        # all was counted by now
        go.set()
        await rabbitmq.letters("gone")
        return await remove(removal, chosen)

    log: Log[str] = Log()
    async with hosted(rabbitmq.settings.url, gone):
        await rabbitmq.bus.publish(Placed(number=1))
        await begun.reaches(1)
        monkeypatch.setattr(prunes.Removal, "all", given_up)
        assert "queue gone.work (consumers)" in await prune(rabbitmq, before(log), consumers=True)
    (letter,) = await rabbitmq.letters("gone")
    assert "letters gone.dead 1 (letters)" in await left(rabbitmq, before(log))
    # and letters come to it as before
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        dead = await channel.get_exchange("gone.dead")
        await dead.publish(aio_pika.Message(b"{}", delivery_mode=2), "gone.work")
    assert letter.id in [each.id for each in await rabbitmq.letters("gone", 2)]


async def test_l7_what_handlers_of_a_service_share_stays_with_its_last_queue(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    gone = Service("gone")

    @gone.on(Placed, retry=fixed(2, 7))
    async def work(placed: Placed) -> None: ...

    await note(rabbitmq, gone)
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("gone.suspects", durable=True, arguments={"x-queue-type": "stream"})
    await rabbitmq.bus.publish(Placed(number=1))
    await prune(rabbitmq, before(log))
    assert await left(rabbitmq, before(log)) == [
        "exchange gone.retry",
        "exchange gone.return",
        "letters gone.dead",
        "queue gone.work 1 (messages)",
        "suspects gone.suspects",
    ]
    await prune(rabbitmq, before(log), messages=True)
    assert await left(rabbitmq, before(log)) == []
