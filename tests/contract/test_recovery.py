"""L2: what else may be lost, and how soon a worker is back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import aio_pika
import pytest

from bus import Handler, Message, Process, Reject, Service
from bus.flow import Flow
from bus.service import Queue
from bus.transport.rabbitmq import consumer, hearing, publisher
from tests.broker.fixtures import Shared
from tests.broker.node import Node
from tests.broker.proxy import Proxy

from .outages import CANCEL, Outage, swallow_down, swallow_up
from .stage import WITHIN, Log, Placed, Shipped, Stage, staged


KILL_CHANNELS = (
    "[rabbit_channel:shutdown(P) || P <- rabbit_channel:list_local(),"
    ' (catch rabbit_channel:info(P, [vhost])) =:= [{{vhost, <<"{vhost}">>}}]].'
)

FORGET = (
    '{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)),'
    " Cancel = fun(C) -> rabbit_fifo:make_checkout({{element(2, C), element(1, C)}}, cancel, #{{}}) end,"
    " [ra:process_command(amqqueue:get_pid(Q), Cancel(C)) || C <- rabbit_amqqueue:consumers(Q)]."
)
"""Has a queue forget its consumers, which are not told."""

KILL_QUEUE = (
    '{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)),'
    " exit(amqqueue:get_pid(Q), kill)."
)
"""Kills the process of a classic queue, which begins anew with what was not acked."""


def steady(log: Log[int], concurrency: int = 8) -> Service:
    service = Service("steady", concurrency=concurrency)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append(placed.number)

    return service


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    told = [record.getMessage() for record in caplog.records]
    return [line for line in told if all(word in line for word in words)]


async def test_l2_a_worker_whose_channels_die_without_a_word_finds_out(
    rabbitmq: Stage, broker: Shared, vhost_name: str
) -> None:
    log: Log[int] = Log()
    async with rabbitmq.hosting(steady(log)):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        await asyncio.to_thread(broker.node.ctl, "eval", KILL_CHANNELS.format(vhost=vhost_name))
        await rabbitmq.bus.publish(Placed(number=2))
        await log.holds(lambda seen: 2 in seen, "the second")


async def test_l2_a_consumer_that_its_queue_forgot_without_a_word_is_there_again(
    rabbitmq: Stage, broker: Shared, vhost_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "PROBE_AFTER", 0.2)
    monkeypatch.setattr(hearing, "DEAF_AFTER", 0.5)
    log: Log[int] = Log()
    async with rabbitmq.hosting(steady(log)):
        await rabbitmq.bus.publish(Placed(number=1))
        await log.reaches(1)
        await asyncio.to_thread(broker.node.ctl, "eval", FORGET.format(vhost=vhost_name, queue="steady.work"))
        await rabbitmq.bus.publish(Placed(number=2))
        await log.holds(lambda seen: 2 in seen, "the second")


async def test_l4_a_worker_that_hears_nothing_for_long_stays_ready_while_it_consumes_anew(
    rabbitmq: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "PROBE_AFTER", 0.05)
    monkeypatch.setattr(hearing, "DEAF_AFTER", 0.1)
    async with rabbitmq.hosting(steady(Log())) as hosted:
        consuming = hosted.worker.consumers["steady.work"]
        assert isinstance(consuming, consumer.RabbitMQConsumer)
        (feed,) = consuming._feeds
        async with asyncio.timeout(WITHIN):
            while not consuming.consuming:
                await asyncio.sleep(0.001)
            while feed._consumers < 4:
                assert consuming.consuming
                await asyncio.sleep(0.001)


async def test_l2_a_worker_that_is_told_that_its_consumers_are_cancelled_leaves_nothing_to_them(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[int] = Log()
    caplog.set_level("INFO", logger="tidegate")
    async with rabbitmq.hosting(steady(log)):
        await rabbitmq.bus.publish(Placed(number=0))
        await log.reaches(1)
        await asyncio.to_thread(broker.node.ctl, "eval", CANCEL.format(vhost=vhost_name, queue="steady.work"))
        while not lines(caplog, "consuming again", "steady.work"):
            await asyncio.sleep(0.01)
        await rabbitmq.bus.publish(*(Placed(number=number) for number in range(1, 40)))
        await log.holds(lambda seen: set(seen) == set(range(40)), "all that was published since")


async def test_l2_a_connection_that_a_firewall_forgot_is_found_before_any_heartbeat_is_missed(
    proxy: Proxy, vhost_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("PROBE_AFTER", "ANSWER_WITHIN", "CONSUME_WITHIN"):
        monkeypatch.setattr(consumer, bound, 1)
    monkeypatch.setattr(publisher, "OPEN_WITHIN", 1)
    monkeypatch.setattr(publisher, "ASK_AFTER", 0.5)
    log: Log[int] = Log()
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage, stage.hosting(steady(log)):
        await stage.bus.publish(Placed(number=1))
        await log.reaches(1)
        proxy.forget()  # maybe while the worker still opens up
        await stage.bus.publish(Placed(number=2))
        await log.holds(lambda seen: 2 in seen, "the second")


async def test_l2_a_channel_that_the_broker_closes_is_opened_again_and_what_ran_is_not_run_again(
    own_broker: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """And a worker that starts while its broker is down."""
    await asyncio.to_thread(own_broker.time_out_consumers, 1500)
    begun: Log[int] = Log()
    ended: Log[int] = Log()
    service = Service("steady")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await asyncio.sleep(5 if placed.number == 1 else 0)
        ended.append(placed.number)

    caplog.set_level("INFO", logger="tidegate")
    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage:
        async with stage.hosting(service):
            await stage.bus.publish(Placed(number=1), Placed(number=2))
            await ended.reaches(2)
            await stage.bus.publish(Placed(number=3))
            await ended.reaches(3)
        assert await stage.ready("steady.work") == 0
        assert Counter(begun) == Counter(ended) == {1: 1, 2: 1, 3: 1}
        closed = lines(caplog, "not consuming", "steady.work")
        assert 1 <= len(closed) == len(lines(caplog, "consuming again", "steady.work"))
        assert all("PRECONDITION_FAILED" in line or "unacked for too long" in line for line in closed)
        assert lines(caplog, "connection lost") == []
    await asyncio.to_thread(own_broker.stop)
    async with staged("rabbitmq", own_broker.url(), publish_timeout=60) as stage, asyncio.TaskGroup() as tasks:

        async def work_on() -> None:
            async with stage.hosting(service):
                await stage.bus.publish(Placed(number=4))
                await ended.reaches(4)

        tasks.create_task(work_on())
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_broker.start)
    assert len(lines(caplog, "broker unreachable", "link=publish")) == 1


async def test_l2_a_queue_that_is_deleted_is_said_once(rabbitmq: Stage, caplog: pytest.LogCaptureFixture) -> None:
    log: Log[int] = Log()
    service = steady(log)

    @service.on(Queue("theirs"))
    async def theirs(message: Message) -> None:
        log.append(int(message.body))

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        await channel.declare_queue("theirs", durable=True)
        caplog.set_level("INFO", logger="tidegate")
        async with rabbitmq.hosting(service):
            await channel.default_exchange.publish(aio_pika.Message(b"1"), "theirs")
            await rabbitmq.bus.publish(Placed(number=2))
            await log.holds(lambda seen: {1, 2} <= set(seen), "both")
            await asyncio.sleep(0.2)  # 3.10 crashes the connection where a queue goes in the moment it is consumed
            for queue in ("theirs", "steady.work"):
                await channel.queue_delete(queue)
            while not lines(caplog, "not consuming", "queue=theirs"):
                await asyncio.sleep(0.01)
            await channel.declare_queue("theirs", durable=True)
            await channel.default_exchange.publish(aio_pika.Message(b"3"), "theirs")
            await log.holds(lambda seen: 3 in seen, "what came to the queue that was declared again")
            while not lines(caplog, "consuming again", "queue=steady.work"):
                await asyncio.sleep(0.01)
            await rabbitmq.bus.publish(Placed(number=4))
            await log.holds(lambda seen: 4 in seen, "the last")
    for queue in ("theirs", "steady.work"):
        assert len(lines(caplog, "not consuming", f"queue={queue}")) == 1
        assert len(lines(caplog, "consuming again", f"queue={queue}")) == 1


async def test_l2_a_foreign_queue_that_somebody_has_alone_is_waited_for(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    log: Log[str] = Log()
    service = Service("steady")

    @service.on(Queue("theirs"))
    async def work(message: Message) -> None:
        log.append(message.id)

    async def ignore(_: object) -> None: ...

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        theirs = await channel.declare_queue("theirs", durable=True)
        tag = await theirs.consume(ignore, exclusive=True)
        async with rabbitmq.hosting(service), asyncio.timeout(WITHIN):
            while not lines(caplog, "not consuming", "queue=theirs", "exclusive"):
                await asyncio.sleep(0.01)
            await theirs.cancel(tag)
            await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id="one"), "theirs")
            await log.reaches(1)


async def test_l2_what_ran_as_the_process_of_a_foreign_queue_died_is_not_run_again(
    rabbitmq: Stage, broker: Shared, vhost_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun: Log[str] = Log()
    go = asyncio.Event()
    service = Service("steady", concurrency=4)

    @service.on(Queue("theirs"))
    async def work(message: Message) -> None:
        begun.append(message.id)
        if message.id == "one":
            await go.wait()

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:

        async def send(id: str) -> None:
            theirs = aio_pika.Message(b"{}", message_id=id, app_id="they", delivery_mode=2)
            await channel.default_exchange.publish(theirs, "theirs")

        await channel.declare_queue("theirs", durable=True)
        caplog.set_level("INFO", logger="tidegate")
        async with rabbitmq.hosting(service), asyncio.timeout(WITHIN):
            await send("one")
            await begun.reaches(1)
            await asyncio.to_thread(broker.node.ctl, "eval", KILL_QUEUE.format(vhost=vhost_name, queue="theirs"))
            await send("two")  # what was handed out before it came again, and waits for its first run
            await begun.reaches(2)
            go.set()
            while not lines(caplog, "event=ack", "id=one"):
                await asyncio.sleep(0.01)
        assert await rabbitmq.ready("theirs") == 0
    assert begun == ["one", "two"]


async def test_l2_a_worker_finds_its_broker_on_a_port_that_opens_later(broker: Shared, vhost_name: str) -> None:
    log: Log[int] = Log()
    late = Proxy(broker.port)
    async with late.running():
        pass
    async with staged("rabbitmq", late.url(vhost_name)) as stage, asyncio.TaskGroup() as tasks:
        opened = asyncio.Event()

        async def work() -> None:
            async with stage.hosting(steady(log)):
                await stage.bus.publish(Placed(number=1))
                await log.reaches(1)
            opened.set()

        tasks.create_task(work())
        await asyncio.sleep(0.3)
        async with late.running():
            await opened.wait()


@pytest.mark.parametrize("at_first", [8, 0])
async def test_l2_a_connection_that_is_lost_with_the_ack_on_its_way_runs_nothing_again(
    proxy: Proxy, vhost: str, vhost_name: str, at_first: int
) -> None:
    flows: list[Flow] = []

    def held(handler: Handler, process: Process) -> Process:
        handler.flow.hold("test", at_first)
        flows.append(handler.flow)
        return process

    begun: Log[int] = Log()
    ended: Log[int] = Log()
    go = asyncio.Event()
    service = Service("steady", concurrency=4)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()
        ended.append(placed.number)

    async with staged("rabbitmq", vhost) as there:
        await there.declare(service)
        await there.bus.publish(*(Placed(number=number) for number in range(4)))
        async with (
            staged("rabbitmq", proxy.url(vhost_name)) as stage,
            stage.hosting(service, middleware=[held]) as hosted,
        ):
            async with asyncio.timeout(20):
                while hosted.health.ready().status != 200:
                    await asyncio.sleep(0.02)
            flows[0].release("test")
            await begun.reaches(4)
            for _ in range(2):
                swallow_up(proxy)
                go.set()
                await ended.reaches(4)
                await asyncio.sleep(0.1)
                proxy.drop()
                proxy.blackhole(up=False, down=False)
                await asyncio.sleep(0.3)
            await there.bus.publish(Placed(number=9))
            await begun.holds(lambda seen: 9 in seen, "the last")
        assert await there.ready("steady.work") == 0
    assert sorted(begun) == [0, 1, 2, 3, 9]


async def test_l2_a_second_replay_is_not_taken_for_the_first_after_a_lost_connection(
    proxy: Proxy, vhost: str, vhost_name: str
) -> None:
    begun: Log[int] = Log()
    go = asyncio.Event()
    service = Service("steady", concurrency=1)

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        if placed.number == 2:
            await go.wait()
        raise Reject("no")

    async with (
        staged("rabbitmq", vhost) as there,
        staged("rabbitmq", proxy.url(vhost_name)) as stage,
        stage.hosting(service) as hosted,
    ):
        await there.bus.publish(Placed(number=1))
        (letter,) = await there.letters("steady")
        await there.transport.dead_letters.replay(letter)
        await begun.reaches(2)
        (letter,) = await there.letters("steady")
        await there.bus.publish(Placed(number=2))
        await begun.reaches(3)
        await there.transport.dead_letters.replay(letter)
        async with asyncio.timeout(20):
            while await there.ready("steady.work"):
                await asyncio.sleep(0.02)
        proxy.drop()
        async with asyncio.timeout(20):
            while hosted.health.ready().status == 200:
                await asyncio.sleep(0)
        go.set()
        await begun.holds(lambda seen: seen.count(1) == 3, "the second replay")


async def test_l2_a_connection_that_is_lost_twice_while_results_are_stored_runs_nothing_again(
    proxy: Proxy, vhost: str, vhost_name: str
) -> None:
    begun: Log[int] = Log()
    results: Log[int] = Log()
    service = Service("steady", concurrency=4)

    @service.on(Placed)
    async def work(placed: Placed) -> Shipped:
        begun.append(placed.number)
        await asyncio.sleep(0.3)
        return Shipped(number=placed.number)

    collector = Service("collector")

    @collector.on(Shipped)
    async def collect(shipped: Shipped) -> None:
        results.append(shipped.number)

    async with (
        staged("rabbitmq", vhost) as there,
        there.hosting(collector),
        staged("rabbitmq", proxy.url(vhost_name), publish_timeout=20) as stage,
        stage.hosting(service),
    ):
        await there.bus.publish(*(Placed(number=number) for number in range(4)))
        await begun.reaches(4)
        for _ in range(2):
            proxy.drop()  # while it runs, and while what came again waits for it
            await asyncio.sleep(0.2)
        swallow_down(proxy)  # stored, and the confirm is lost
        await asyncio.sleep(0.3)
        proxy.drop()
        proxy.blackhole(up=False, down=False)
        await results.holds(lambda seen: set(seen) == {0, 1, 2, 3}, "all results")
        await there.bus.publish(Placed(number=9))
        await results.holds(lambda seen: 9 in seen, "the last result")
    assert sorted(begun) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("half", [swallow_up, swallow_down, None])
async def test_l2_a_link_that_only_half_works_is_found_while_handlers_keep_the_loop_busy(
    proxy: Proxy, vhost: str, vhost_name: str, caplog: pytest.LogCaptureFixture, half: Outage | None
) -> None:
    blocked: Log[int] = Log()
    log: Log[int] = Log()
    busy = Service("busy", concurrency=2)

    @busy.on(Shipped)
    async def block(shipped: Shipped) -> None:
        time.sleep(0.3)
        blocked.append(shipped.number)

    # the broker gives up a client that is silent for twice the heartbeat, which a busy machine may make of one turn
    heartbeat = 1 if half else 2
    async with (
        staged("rabbitmq", vhost) as there,
        staged("rabbitmq", f"{proxy.url(vhost_name)}?heartbeat={heartbeat}") as stage,
        stage.hosting(steady(log)),
        there.hosting(busy),
    ):
        await there.bus.publish(*(Shipped(number=number) for number in range(36)))
        await there.bus.publish(Placed(number=1))
        await log.reaches(1)
        if half is None:
            await blocked.reaches(len(blocked) + 20)
            assert lines(caplog, "connection lost") == []
            return
        half(proxy)
        while not lines(caplog, "connection lost", "link=consume"):
            assert len(blocked) < 36
            await blocked.reaches(len(blocked) + 1)
        proxy.blackhole(up=False, down=False)
        await there.bus.publish(Placed(number=2))
        await log.holds(lambda seen: 2 in seen, "the second")
