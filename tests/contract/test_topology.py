"""L6, L7: what is declared is noted, what is left over is told, and a prune removes nothing that anybody needs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import aio_pika
import pytest

from bus import Service, fixed
from bus.transport.rabbitmq import prune as prunes
from bus.transport.rabbitmq import topology
from bus.transport.rabbitmq.record import PRUNING, Declaration, Record
from bus.transport.rabbitmq.topology import Queue
from tests.broker.fixtures import Shared

from .stage import Log, Placed, Shipped, Stage, staged
from .versions import (
    APP,
    after,
    before,
    hosted,
    is_there,
    left,
    note,
    noted,
    prune,
    subscriptions,
    survey,
    wanted_by_somebody,
)


LEFT = ["binding stock.work order.shipped", "queue stock.removed", "step stock.retry.7000"]


async def entries(stage: Stage) -> int:
    """Return how many entries the record has, by the offset of the next."""
    async with staged("rabbitmq", stage.settings.url) as other:
        record = other.transport.topology
        async with record._record() as (_, read):  # type: ignore[attr-defined]
            return int((await read.read()).next)


async def test_l6_what_another_version_declared_and_this_one_does_not_is_left_over(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    assert await left(rabbitmq, before(log)) == []
    await note(rabbitmq, after(log))
    await rabbitmq.bus.publish(Placed(), Placed())
    assert await left(rabbitmq, after(log)) == [LEFT[0], "queue stock.removed 2 (messages)", LEFT[2]]
    found = await survey(rabbitmq, after(log))
    assert [(version.ours, version.newest) for version in found.versions] == [(False, False), (True, True)]
    # the suspects, the delays and the record's stream are declared when they are first needed
    assert {part.kind for part in found.missing} <= {"suspects", "delay", "exchange"}
    assert {part.service for part in found.missing} == {"stock", "delay"}


async def test_l6_replicas_and_restarts_note_nothing_and_another_version_does(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    count = await entries(rabbitmq)
    for _ in range(3):
        await note(rabbitmq, before(log))
    assert await entries(rabbitmq) == count
    await note(rabbitmq, after(log))
    await note(rabbitmq, after(log))
    assert await entries(rabbitmq) == count + 1


async def test_l6_what_other_apps_declared_is_never_left_over(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    other = Service("theirs")

    @other.on(Placed)
    async def work(placed: Placed) -> None: ...

    await note(rabbitmq, other, app="theirs")
    await note(rabbitmq, before(log))
    assert await left(rabbitmq, before(log)) == []
    assert await prune(rabbitmq, before(log)) == []
    # a service of the same name that another app has keeps what both declare
    await note(rabbitmq, after(log))
    await note(rabbitmq, before(log), app="theirs")
    assert await left(rabbitmq, after(log)) == []


async def test_l6_what_a_stranger_noted_is_left_over_only_where_it_is_a_services_own(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await rabbitmq.transport.topology.apply(APP, subscriptions(before(log)))
    named = [
        Queue("stock.work"),
        Queue("stock.old"),
        Queue("delay.5"),
        Queue("theirs.work"),
        Queue("tidegate.topology"),
    ]
    async with rabbitmq.transport.topology._record() as (_, record):  # type: ignore[attr-defined]
        for service in ("delay", "tidegate", "st", "", "stock"):
            await record.declared(Declaration(APP, service, tuple(named), (), (("events", "topic"),)), "stranger")
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        for name in ("stock.old", "theirs.work"):
            await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    assert await left(rabbitmq, before(log)) == ["queue stock.old (later)"]


async def test_l6_a_service_that_is_gone_as_a_whole_is_left_over_and_pruned_with_its_streams(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    gone = Service("gone")

    @gone.on(Shipped, retry=fixed(2, 7))
    async def work(shipped: Shipped) -> None: ...

    await note(rabbitmq, gone, before(log))
    assert (await prune(rabbitmq, before(log)))[-1] == "step gone.retry.7000"
    assert await left(rabbitmq, before(log)) == []
    async with await aio_pika.connect(rabbitmq.settings.url) as connection:
        for queue in ("gone.work", "gone.dead", "gone.retry.7000"):
            channel = await connection.channel()
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                await channel.declare_queue(queue, passive=True)


async def test_l6_open_dead_letters_keep_their_stream(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    gone = Service("gone")

    @gone.on(Shipped, retry=fixed(1, 0))
    async def work(shipped: Shipped) -> None:
        raise ValueError

    async with rabbitmq.hosting(gone, before(log)):
        await noted(rabbitmq, gone, before(log))
        await rabbitmq.bus.publish(Shipped(number=3))
        (letter,) = await rabbitmq.letters("gone")
    assert "letters gone.dead 1 (letters)" in await left(rabbitmq, before(log))
    await prune(rabbitmq, before(log))
    assert [kept.id for kept in await rabbitmq.letters("gone")] == [letter.id]
    await rabbitmq.transport.dead_letters.discard(letter)
    await prune(rabbitmq, before(log))
    assert await left(rabbitmq, before(log)) == []


async def test_l6_a_worker_that_starts_names_the_queues_that_no_handler_has(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await rabbitmq.bus.publish(Placed(number=1))
    async with rabbitmq.hosting(after(log)):
        await noted(rabbitmq, after(log))
        async with asyncio.timeout(20):
            while not (told := [r.getMessage() for r in caplog.records if "without a handler" in r.getMessage()]):
                await asyncio.sleep(0.02)
    assert len(told) == 1
    assert "stock.removed" in told[0]
    assert "messages=1" in told[0]
    assert "python app.py topology prune" in told[0]


async def test_l6_a_record_that_cannot_be_kept_is_told_once_and_stops_nobody(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[str] = Log()
    await rabbitmq.declare(before(log))
    user = f"noteless-{vhost_name}"
    await asyncio.to_thread(broker.node.ctl, "add_user", user, "secret")
    rights = ("^$", ".*", r"^stock\..*|^events$")
    await asyncio.to_thread(broker.node.ctl, "set_permissions", "-p", vhost_name, user, *rights)
    url = rabbitmq.settings.url.replace("guest:guest", f"{user}:secret")
    async with staged("rabbitmq", url) as stage, stage.hosting(before(log)):
        await stage.bus.publish(Placed(number=1))
        await log.reaches(2)
        async with asyncio.timeout(20):
            while not (told := [r.getMessage() for r in caplog.records if "not noted" in r.getMessage()]):
                await asyncio.sleep(0.02)
    assert len(told) == 1
    assert "tidegate.topology" in told[0]


async def test_l3_after_an_apply_a_worker_needs_no_right_to_configure(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[str] = Log()
    assert await rabbitmq.transport.topology.apply(APP, subscriptions(before(log))) == []
    assert (await survey(rabbitmq, before(log))).missing == ()
    user = f"worker-{vhost_name}"
    await asyncio.to_thread(broker.node.ctl, "add_user", user, "secret")
    await asyncio.to_thread(broker.node.ctl, "set_permissions", "-p", vhost_name, user, "^$", ".*", ".*")
    url = rabbitmq.settings.url.replace("guest:guest", f"{user}:secret")
    count = await entries(rabbitmq)
    async with hosted(url, before(log)) as (stage, _):
        await stage.bus.publish(Placed(number=1), delay=0.2)
        await log.reaches(2)
    assert sorted(log) == ["before order.placed 1", "removed 1"]
    assert await entries(rabbitmq) == count
    assert [r.getMessage() for r in caplog.records if r.levelname in ("WARNING", "ERROR")] == []


async def test_l3_an_apply_names_what_does_not_fit_and_declares_the_rest(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("stock.removed", durable=True, arguments={"x-queue-type": "classic"})
    (fault,) = await rabbitmq.transport.topology.apply(APP, subscriptions(before(log)))
    assert "stock.removed" in str(fault)
    assert "\n" not in str(fault)
    # a handler whose queue does not fit has no use for steps of its own
    assert {part.kind for part in (await survey(rabbitmq, before(log))).missing} == {"step"}


async def test_l7_a_prune_removes_what_is_left_over_and_what_was_pruned_is_not_shown_again(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    assert await wanted_by_somebody(rabbitmq, Shipped())
    assert await prune(rabbitmq, after(log)) == LEFT
    assert not await wanted_by_somebody(rabbitmq, Shipped())
    assert await left(rabbitmq, after(log)) == []
    # what a version declares again is there again
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    assert await wanted_by_somebody(rabbitmq, Shipped())
    assert await left(rabbitmq, after(log)) == LEFT


async def test_l7_a_prune_leaves_what_has_messages_until_it_is_told(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await rabbitmq.bus.publish(Placed(), Placed())
    await note(rabbitmq, after(log))
    assert await prune(rabbitmq, after(log)) == [LEFT[0], LEFT[2]]
    assert await rabbitmq.ready("stock.removed") == 2
    assert await prune(rabbitmq, after(log), messages=True) == ["queue stock.removed 2 (messages)"]
    assert await left(rabbitmq, after(log)) == []


async def test_l7_a_prune_leaves_what_an_old_replica_consumes(rabbitmq: Stage, vhost: str) -> None:
    log: Log[str] = Log()
    async with hosted(vhost, before(log)):
        await note(rabbitmq, after(log))
        assert "queue stock.removed (consumers)" in await left(rabbitmq, after(log))
        assert await prune(rabbitmq, after(log), messages=True) == [LEFT[0], LEFT[2]]
        await rabbitmq.bus.publish(Placed(number=4))
        await log.holds(lambda lines: "removed 4" in lines, "what the old replica still handles")


async def test_l7_a_prune_leaves_what_the_newest_version_declares(rabbitmq: Stage) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    # somebody works with the code from before
    assert await left(rabbitmq, before(log)) == ["queue stock.renamed (later)", "step stock.retry.3000 (later)"]
    assert await prune(rabbitmq, before(log), messages=True, consumers=True) == []
    await rabbitmq.transport.topology.apply(APP, subscriptions(before(log)))
    assert await prune(rabbitmq, before(log)) == ["queue stock.renamed", "step stock.retry.3000"]


@pytest.mark.parametrize(
    "moment", ["after the first look", "while it is watched", "after the last look", "just before the deletion"]
)
async def test_l7_what_comes_in_while_its_queue_is_pruned_stays(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    look, ask, looks = prunes.look, prunes.ask, 0

    async def look_and_send(link: Any, parts: Any) -> Any:
        nonlocal looks
        seen = await look(link, parts)
        if parts[0].name == "stock.removed":
            looks += 1
            if (looks, moment) in ((1, "after the first look"), (2, "after the last look")):
                await rabbitmq.bus.publish(Placed(number=8), to="stock.removed")
        return seen

    async def send_and_ask(channel: Any, command: Any, within: float = 10.0) -> Any:
        if moment == "just before the deletion" and getattr(command, "name", "") == "Queue.Delete":
            await rabbitmq.bus.publish(Placed(number=8), to="stock.removed")
        answer = await ask(channel, command, within)
        if moment == "while it is watched" and getattr(command, "name", "") == "Basic.Consume":
            tasks.create_task(send_late())
        return answer

    async def send_late() -> None:
        await asyncio.sleep(0.3)
        await rabbitmq.bus.publish(Placed(number=8), to="stock.removed")  # raises where the queue is gone

    monkeypatch.setattr(prunes, "look", look_and_send)
    monkeypatch.setattr(prunes, "ask", send_and_ask)
    (removed,) = [part for part in (await survey(rabbitmq, after(log))).left if part.name == "stock.removed"]
    async with asyncio.TaskGroup() as tasks:
        (kept,) = await rabbitmq.transport.topology.prune(APP, subscriptions(after(log)), [removed])
    monkeypatch.undo()
    assert "came in" in kept.kept
    assert await left(rabbitmq, after(log)) == [LEFT[0], "queue stock.removed 1 (messages)", LEFT[2]]
    async with rabbitmq.hosting(before(log)):
        await log.holds(lambda lines: "removed 8" in lines, "the message that came in")
        # and its queue is bound as it was
        await rabbitmq.bus.publish(Placed(number=9))
        await log.holds(lambda lines: "removed 9" in lines, "an event that came later")


@pytest.mark.parametrize("cut", ["before anything is removed", "before it is marked as gone"])
async def test_l7_a_prune_that_was_cut_off_goes_on_when_it_is_run_again(
    rabbitmq: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    log: Log[str] = Log()
    reached = asyncio.Event()
    remove = prunes.Removal.all

    async def stop_short(removal: prunes.Removal, chosen: Any) -> Any:
        if cut == "before it is marked as gone":
            await remove(removal, chosen)
        reached.set()
        await asyncio.Event().wait()

    async with hosted(vhost, before(log, fails=True)) as (old, _):
        await note(rabbitmq, after(log))
        monkeypatch.setattr(prunes.Removal, "all", stop_short)
        async with asyncio.TaskGroup() as tasks, staged("rabbitmq", vhost) as other:
            pruning = tasks.create_task(prune(other, after(log)))
            await reached.wait()
            pruning.cancel()
        monkeypatch.undo()
        # the old version declares its steps again, and leaves out what somebody began to prune
        async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
            await channel.queue_delete("stock.retry.7000")
        await old.bus.publish(Placed(number=1))
        async with asyncio.timeout(20):
            while not await is_there(rabbitmq, "stock.retry.7000", before(log)):
                await asyncio.sleep(0.05)
        assert await wanted_by_somebody(rabbitmq, Shipped()) == (cut == "before anything is removed")
        assert LEFT[0] in await prune(rabbitmq, after(log))
        assert not await wanted_by_somebody(rabbitmq, Shipped())


@pytest.mark.parametrize("moment", ["before it is marked", "after it is marked"])
async def test_l7_a_worker_that_starts_while_somebody_prunes_has_what_it_declares(
    rabbitmq: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    reached, go_on = asyncio.Event(), asyncio.Event()
    mark, remove = Record.mark, prunes.Removal.all

    async def late_mark(record: Record, kind: str, *told: Any) -> Any:
        if kind == PRUNING and moment == "before it is marked":
            reached.set()
            await go_on.wait()
        return await mark(record, kind, *told)

    async def late_removal(removal: prunes.Removal, chosen: Any) -> Any:
        if moment == "after it is marked":
            reached.set()
            await go_on.wait()
        return await remove(removal, chosen)

    monkeypatch.setattr(Record, "mark", late_mark)
    monkeypatch.setattr(prunes.Removal, "all", late_removal)
    async with asyncio.TaskGroup() as tasks, staged("rabbitmq", vhost) as other:
        pruning = tasks.create_task(prune(other, after(log)))
        await reached.wait()
        count = await entries(rabbitmq)
        starting = tasks.create_task(note(rabbitmq, before(log)))
        if moment == "before it is marked":
            await starting
        async with asyncio.timeout(20):
            while await entries(other) == count:
                await asyncio.sleep(0.02)
        go_on.set()
        await asyncio.wait([pruning, starting])
    for name in ("stock.work", "stock.removed", "stock.retry.7000"):
        assert await is_there(rabbitmq, name, before(log))
    # and it is noted so: the start of a replica adds nothing
    count = await entries(rabbitmq)
    await note(rabbitmq, before(log))
    assert await entries(rabbitmq) == count
    assert await wanted_by_somebody(rabbitmq, Shipped())


async def test_l7_an_old_version_that_declares_again_leaves_out_what_was_pruned(rabbitmq: Stage, vhost: str) -> None:
    log: Log[str] = Log()
    async with hosted(vhost, before(log, fails=True)) as (old, worker):
        await note(rabbitmq, after(log))
        await prune(rabbitmq, after(log))
        assert not await wanted_by_somebody(rabbitmq, Shipped())
        # its retry step is gone, which it needs: it declares what it has, but not what was pruned
        await old.bus.publish(Placed(number=1))
        await log.holds(lambda lines: "before order.placed 1" in lines, "a run")
        async with asyncio.timeout(20):
            while "step stock.retry.7000" not in str(await left(rabbitmq, after(log))):
                await asyncio.sleep(0.05)
        assert not await wanted_by_somebody(rabbitmq, Shipped())
        assert not worker.task.done()


async def test_l7_a_prune_that_goes_by_while_an_old_version_declares_again_holds(
    rabbitmq: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log[str] = Log()
    declare = topology.declare
    pruned = asyncio.Event()

    async def prune_and_declare(*told: Any) -> Any:
        # the old version has heard of no prune, and declares after it
        if not pruned.is_set():
            pruned.set()
            await prune(rabbitmq, after(log))
        return await declare(*told)

    async with hosted(vhost, before(log, fails=True)) as (old, _):
        await note(rabbitmq, after(log))
        async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
            await channel.queue_delete("stock.retry.7000")
        monkeypatch.setattr(topology, "declare", prune_and_declare)
        await old.bus.publish(Placed(number=1))
        async with asyncio.timeout(20):
            while not await is_there(rabbitmq, "stock.retry.7000", before(log)):
                await asyncio.sleep(0.05)
            while await wanted_by_somebody(rabbitmq, Shipped()):
                await asyncio.sleep(0.05)
        assert pruned.is_set()


async def test_l7_a_queue_that_was_pruned_under_an_old_worker_is_not_declared_by_its_reconnect(
    rabbitmq: Stage, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[str] = Log()
    async with hosted(vhost, before(log)) as (_, worker):
        await note(rabbitmq, after(log))
        assert "queue stock.removed (consumers)" in await prune(rabbitmq, after(log), consumers=True)
        async with asyncio.timeout(20):
            while not worker.worker.refused:
                await asyncio.sleep(0.05)
        assert "was pruned while this worker ran" in worker.worker.refused["stock.removed"]
        await rabbitmq.bus.publish(Placed(number=5))
        await log.holds(lambda lines: "before order.placed 5" in lines, "its other handler")
    assert await left(rabbitmq, after(log)) == []


async def test_l7_two_operators_do_not_prune_at_once(rabbitmq: Stage, vhost: str) -> None:
    log: Log[str] = Log()
    await note(rabbitmq, before(log))
    await note(rabbitmq, after(log))
    async with AsyncExitStack() as stack:
        stages = [await stack.enter_async_context(staged("rabbitmq", vhost)) for _ in range(4)]
        outcomes = await asyncio.gather(*(prune(stage, after(log)) for stage in stages), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, LookupError)]
    done = [outcome for outcome in outcomes if isinstance(outcome, list)]
    assert len(refused) + len(done) == len(outcomes), outcomes
    assert sorted(removed for lines in done for removed in lines) == LEFT
