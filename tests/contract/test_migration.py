"""L3: `topology migrate` moves a subscription to other arguments, loses nothing, and can be cut off anywhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any

import aio_pika
import pytest

from bus import AccessRefused, ConfigurationError, Context, Message, Service, fixed
from bus.transport.rabbitmq import migration
from bus.transport.rabbitmq.admin import RabbitMQTopology
from bus.transport.rabbitmq.alone import alone
from bus.transport.rabbitmq.migration import Moving
from bus.transport.rabbitmq.topology import Names, queue
from tests.broker.fixtures import Shared

from .moved import QUEUE, killed, migrated, subscription, version
from .stage import WITHIN, Log, Placed, Shipped, Stage, staged
from .versions import before, hosted, note, wanted_by_somebody


def numbers(log: list[str]) -> list[int]:
    """Return the numbers of the events that were handled, whichever version did it."""
    return [int(entry.rpartition(" ")[2]) for entry in log]


def twice(log: list[str]) -> int:
    """Return how many runs were one too many."""
    return sum(times - 1 for times in Counter(numbers(log)).values())


async def test_l3_a_handler_is_moved_to_other_arguments_with_its_messages_in_their_order(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    await rabbitmq.bus.publish(*(Placed(number=number, note="a") for number in range(300)))
    assert await migrated(rabbitmq, version(log, ordered=True)) == 300
    assert await rabbitmq.ready(QUEUE) == 300
    async with rabbitmq.hosting(version(log, ordered=True)):
        await rabbitmq.bus.publish(Placed(number=300, note="a"))
        await log.reaches(301)
    assert numbers(log) == list(range(301))


@pytest.fixture(autouse=True)
def _nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for what only the kill of a broker needs, or a channel that is held up."""
    monkeypatch.setattr(migration, "YOUNG", 0.0)
    monkeypatch.setattr(migration, "ROUTED_WITHIN", 0.0)


async def ignored(shipped: Shipped) -> None: ...


async def test_l3_workers_of_both_versions_and_a_publisher_run_on_and_nothing_is_lost(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    published = count()

    async def publish() -> None:
        while True:
            await rabbitmq.bus.publish(Placed(number=next(published), note="a"))

    async with hosted(rabbitmq.settings.url, version(log, "old ")), staged("rabbitmq", rabbitmq.settings.url) as new:
        # the new version finds a queue with other arguments, and takes up its work when that was moved
        beside = Service("beside")
        beside.on(Shipped, name="work")(ignored)
        async with new.hosting(version(log, "new ", ordered=True), beside) as worker, asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(publish())
            await log.reaches(200)
            assert list(worker.worker.refused) == [QUEUE]
            assert "topology migrate stock.work" in worker.worker.refused[QUEUE]
            await migrated(rabbitmq, version(log, ordered=True))
            moved = next(published)
            await log.holds(lambda log: moved + 200 in numbers(log), "what came after the move")
            publishing.cancel()
            await log.holds(lambda log: not worker.worker.refused, "the new version's consumer")
        most = next(published)
        all_of_them = {*range(most - 1)} - {moved}
        await log.holds(lambda log: all_of_them <= set(numbers(log)), f"every number below {most - 1} but {moved}")
    assert twice(log) < 20


STEPS = (
    "marked as moving",
    "declared what stands aside",
    "bound what stands aside",
    "stores what was in *.work",
    "moves what was in *.work",
    "deleted the old queue",
    "declared the new queue",
    "stores what was in *.moving",
    "moves what was in *.moving",
    "brought back what was moved",
    "stores what was in *.arriving",
    "moves what was in *.arriving",
    "brought back what arrived",
    "bound the new queue",
    "deleted what stood aside",
    "marked as moved",
)


async def test_l3_a_migration_that_is_killed_at_any_step_goes_on_and_loses_nothing(rabbitmq: Stage) -> None:
    async def killed_at(number: int, step: str) -> None:
        log: Log[str] = Log()
        async with staged("rabbitmq", rabbitmq.settings.url, namespace=f"n{number}") as stage:
            await stage.declare(version(log))
            await stage.bus.publish(*(Placed(number=number, note="a") for number in range(20)))
            if "arriv" in step:
                # what comes while it stands still is what arrives
                assert await killed(stage, version(log, ordered=True), "bound what stands aside")
                await stage.bus.publish(*(Placed(number=number, note="a") for number in range(20, 30)))
                assert await killed(stage, version(log, ordered=True), step)
            else:
                assert await killed(stage, version(log, ordered=True), step)
                await stage.bus.publish(*(Placed(number=number, note="a") for number in range(20, 30)))
            if step != "marked as moved":
                await migrated(stage, version(log, ordered=True))
            await stage.bus.publish(Placed(number=30, note="a"))
            async with stage.hosting(version(log, ordered=True)):
                await log.holds(lambda log: set(numbers(log)) == {*range(31)}, f"every number after {step!r}")
            first = list(dict.fromkeys(numbers(log)))
            assert first == sorted(first), step
            # what was stored and not acked yet comes twice, and nothing else
            assert twice(log) in (range(1, 21) if "stores" in step else (0,)), step

    for at in range(0, len(STEPS), 2):
        await asyncio.gather(*(killed_at(number, STEPS[number]) for number in (at, at + 1)))


async def test_l3_what_a_handler_runs_meanwhile_is_waited_for_and_is_not_lost_with_its_worker(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    begun: Log[int] = Log()
    service = Service("stock")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await asyncio.Event().wait()

    async with hosted(rabbitmq.settings.url, service) as (_, worker):
        await rabbitmq.bus.publish(*(Placed(number=number, note="a") for number in range(5)))
        await begun.reaches(5)
        async with asyncio.TaskGroup() as tasks:
            moving = tasks.create_task(migrated(rabbitmq, version(log, ordered=True)))
            await waited(rabbitmq, "stock.work.moving")
            assert not moving.done()
            await worker.die()
    async with rabbitmq.hosting(version(log, ordered=True)):
        await log.reaches(5)
    assert sorted(numbers(log)) == list(range(5))


async def waited(stage: Stage, queue: str) -> None:
    """Wait until a queue is there, and a moment that a migration would have ended in."""
    async with asyncio.timeout(WITHIN):
        while True:
            try:
                await stage.ready(queue)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                await asyncio.sleep(0.05)
            else:
                break
    await asyncio.sleep(0.5)


async def test_l3_what_was_routed_to_a_queue_and_comes_to_it_after_it_was_unbound_is_moved_as_well(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "ROUTED_WITHIN", 1.0)
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    await rabbitmq.bus.publish(Placed(number=1, note="a"))
    unbound = {"bound what stands aside": QUEUE, "bound the new queue": f"{QUEUE}.arriving"}

    async def late(name: str) -> None:
        await asyncio.sleep(0.3)
        await rabbitmq.bus.publish(Placed(number=2, note="a"), to=name)  # raises where the queue is gone

    async with asyncio.TaskGroup() as tasks:

        def tell(what: str, moved: int) -> None:
            if what in unbound:
                tasks.create_task(late(unbound[what]))

        new = version(log, ordered=True)
        await rabbitmq.transport.topology.migrate("contract", subscription(new), tell)
    async with rabbitmq.hosting(new):
        await log.reaches(3)
    assert sorted(numbers(log)) == [1, 2, 2]


async def test_l3_a_consumer_that_does_not_leave_is_told_and_loses_nothing(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LEFT_WITHIN", 0.5)
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        held: Log[object] = Log()
        queue = await channel.get_queue(QUEUE)
        await channel.set_qos(1)
        await queue.consume(held.append)
        await rabbitmq.bus.publish(*(Placed(number=number, note="a") for number in range(3)))
        await held.reaches(1)
        with pytest.raises(LookupError, match=r"^1 consumers still hold messages of stock.work"):
            await migrated(rabbitmq, version(log, ordered=True))
    assert await migrated(rabbitmq, version(log, ordered=True)) >= 3
    assert await rabbitmq.ready(QUEUE) == 3


async def test_l3_an_old_replica_that_comes_later_works_on_what_is_there_and_turns_nothing_back(
    rabbitmq: Stage,
) -> None:
    log: Log[str] = Log()
    async with hosted(rabbitmq.settings.url, version(log)):
        pass
    await migrated(rabbitmq, version(log, ordered=True))
    async with rabbitmq.hosting(version(log)):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
            await channel.queue_delete(QUEUE)
        async with asyncio.timeout(WITHIN):
            while not await wanted_by_somebody(rabbitmq, Placed(number=2)):
                await asyncio.sleep(0.05)
        await log.reaches(2)
    with pytest.raises(LookupError, match="nothing to migrate"):
        await migrated(rabbitmq, version(log, ordered=True))


async def test_l3_an_old_replica_that_cannot_keep_its_order_any_more_stops_its_handler(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    async with hosted(rabbitmq.settings.url, version(log, ordered=True)):
        pass
    await migrated(rabbitmq, version(log))
    async with rabbitmq.hosting(version(log, ordered=True)) as worker:
        assert "it cannot keep the order there" in worker.worker.refused[QUEUE]


async def test_l3_a_worker_that_starts_while_it_is_moved_declares_nothing_and_waits(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    async with hosted(rabbitmq.settings.url, version(log, "old ")):
        pass
    assert await killed(rabbitmq, version(log, ordered=True), "deleted the old queue")
    async with (
        staged("rabbitmq", rabbitmq.settings.url) as other,
        other.hosting(version(log, "old ")),
        rabbitmq.hosting(version(log, "new ", ordered=True)) as worker,
    ):
        await rabbitmq.bus.publish(Placed(number=1))
        assert not worker.worker.consumers[QUEUE].consuming
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await rabbitmq.ready(QUEUE)
        await migrated(rabbitmq, version(log, ordered=True))
        await log.reaches(1)


async def test_l3_who_declares_the_old_queue_meanwhile_is_emptied_again(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    await rabbitmq.bus.publish(Placed(number=1))
    declared, turned = Moving._declared, []

    async def turned_back(self: Moving, arguments: Any) -> bool:
        if not turned:
            turned.append(arguments)
            async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
                old = queue(Names(), subscription(version(log)))
                made = await channel.declare_queue(QUEUE, durable=True, arguments=dict(old.arguments))
                await made.bind("events", "order.placed")
                await rabbitmq.bus.publish(Placed(number=2))
        return await declared(self, arguments)

    monkeypatch.setattr(Moving, "_declared", turned_back)
    await migrated(rabbitmq, version(log, ordered=True))
    async with rabbitmq.hosting(version(log, ordered=True)):
        await log.holds(lambda log: set(numbers(log)) == {1, 2}, "both")
    assert turned


async def test_l3_retries_under_way_arrive_with_their_attempts_and_forged_ones_are_not_believed(
    rabbitmq: Stage,
) -> None:
    seen: Log[tuple[int, int, str]] = Log()
    again = [1]

    def service(*, ordered: bool) -> Service:
        service = Service("stock")

        @service.on(Placed, name="work", ordered_by="note" if ordered else None, retry=fixed(3, 1.5))
        async def work(placed: Placed, context: Context) -> None:
            seen.append((placed.number, context.attempt, context.message.headers.get("x-own", "")))
            if placed.number in again and context.attempt == 1:
                raise ValueError

        return service

    async with hosted(rabbitmq.settings.url, service(ordered=False)) as (_, worker):
        await rabbitmq.bus.publish(Placed(number=1))
        await seen.reaches(1)
        await worker.stop()
    forged = {"tidegate-attempt": 3, "tidegate-first-failed-at": "2020-01-01T00:00:00+00:00", "tidegate-routed": True}
    body = b'{"number": 2, "note": "a"}'
    await rabbitmq.raw("order.placed", body, headers={**forged, "x-own": "kept"}, expiration=60)
    # in the old queue, on its way to it by the retries' exchange, and in the new one
    await migrated(rabbitmq, service(ordered=True))
    async with rabbitmq.hosting(service(ordered=True)):
        await seen.reaches(3)
    assert sorted(seen) == [(1, 1, ""), (1, 2, ""), (2, 1, "kept")]


async def test_l3_an_event_that_no_pattern_asks_for_any_more_is_known_as_such_after_the_move(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await rabbitmq.bus.publish(Shipped(number=1), Placed(number=2))

    service = Service("stock")

    @service.on(Placed, name="work", ordered_by="note")
    async def work(placed: Placed) -> None:
        log.append(f"after {placed.number}")

    await migrated(rabbitmq, service)
    # what only the record knows is bound still: prune takes it away
    assert await wanted_by_somebody(rabbitmq, Shipped(number=3))
    async with rabbitmq.hosting(service, deploy_grace=0) as worker:
        await rabbitmq.bus.publish(Placed(number=4))
        await log.reaches(2)
        assert worker.worker.flows[QUEUE].counts["stale"] == 2
    assert log == ["after 2", "after 4"]


async def test_l3_a_message_that_is_moved_keeps_what_it_is(rabbitmq: Stage) -> None:
    seen: Log[tuple[Message, str | None]] = Log()

    def service(*, ordered: bool) -> Service:
        service = Service("stock")

        @service.on("order.#", name="work", ordered_by="type" if ordered else None)
        async def work(message: Message) -> None:
            seen.append((message, message.expires and message.expires.isoformat()))

        return service

    sent = {"plain": "1", "x-odd": "2", "tidegate-hops": 7}
    properties = {"app_id": "other", "reply_to": "answers", "correlation_id": "cause", "content_type": "text/plain"}
    await rabbitmq.declare(service(ordered=False))
    await rabbitmq.raw("order.made", b"body", sent, message_id="0", expiration=600, **properties)
    await migrated(rabbitmq, service(ordered=True))
    await rabbitmq.raw("order.made", b"body", sent, message_id="1", expiration=600, **properties)
    async with rabbitmq.hosting(service(ordered=True)):
        await seen.reaches(2)
    moved, direct = sorted(seen, key=lambda each: each[0].id)
    assert replace(moved[0], id="") == replace(direct[0], id="")


async def test_l3_what_cannot_be_migrated_is_told(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    with pytest.raises(LookupError, match=r"there is no queue 'stock\.work'"):
        await migrated(rabbitmq, version(log))
    await rabbitmq.declare(version(log))
    with pytest.raises(LookupError, match="has the arguments that the code declares"):
        await migrated(rabbitmq, version(log))
    topology = rabbitmq.transport.topology
    assert isinstance(topology, RabbitMQTopology)
    async with topology._record() as (streams, _), alone(streams, *topology._turn()):
        with pytest.raises(LookupError, match="somebody else changes the topology"):
            await migrated(rabbitmq, version(log, ordered=True))


async def test_l3_a_user_without_rights_moves_nothing(rabbitmq: Stage, broker: Shared) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(version(log))
    name = rabbitmq.settings.url.rpartition("/")[2]
    broker.node.ctl("add_user", f"reader-{name}", "secret")
    broker.node.ctl("set_permissions", "-p", name, f"reader-{name}", r"^$", ".*", ".*")
    url = rabbitmq.settings.url.replace("guest:guest", f"reader-{name}:secret")
    async with staged("rabbitmq", url) as stage:
        with pytest.raises(AccessRefused, match="needs the right to configure"):
            await migrated(stage, version(log, ordered=True))
    assert await rabbitmq.ready(QUEUE) == 0


@pytest.mark.parametrize("kind", ["classic", "by hand"])
async def test_l3_a_queue_that_somebody_made_otherwise_is_moved(rabbitmq: Stage, kind: str) -> None:
    log: Log[str] = Log()
    arguments = {"x-max-length": 1000} if kind == "classic" else {"x-queue-type": "quorum", "x-message-ttl": 600_000}
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue(QUEUE, durable=True, arguments=arguments)
        await channel.declare_exchange("events", "topic", durable=True)
    await rabbitmq.declare(version(log))
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await (await channel.get_queue(QUEUE)).bind("events", "order.placed")
    await rabbitmq.bus.publish(*(Placed(number=number) for number in range(10)))
    await migrated(rabbitmq, version(log))
    async with rabbitmq.hosting(version(log)):
        await log.reaches(10)
    assert sorted(numbers(log)) == list(range(10))


async def test_l3_a_stream_is_not_moved_round_for_ever(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "stream"})
        await channel.default_exchange.publish(aio_pika.Message(b"{}", delivery_mode=2), QUEUE)
    with pytest.raises(ConfigurationError, match=r"stock\.work is a stream"):
        await migrated(rabbitmq, version(log))
