"""D: delivery."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from bus import Context, Message, Service, fixed, immediate
from bus.context import NOW
from bus.message import Outgoing
from tests.broker.proxy import Proxy

from .stage import Log, Placed, Shipped, Stage, staged


async def test_d1_each_subscription_gets_its_own_copy_and_replicas_share_it(stage: Stage) -> None:
    first: Log[int] = Log()
    second: Log[int] = Log()
    service = Service("both")

    @service.on(Placed, name="first")
    async def one(placed: Placed) -> None:
        first.append(placed.number)

    @service.on(Placed, name="second")
    async def two(placed: Placed) -> None:
        second.append(placed.number)

    async with stage.hosting(service), stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(200)))
        await first.reaches(200)
        await second.reaches(200)
        await asyncio.sleep(0.1)
    assert sorted(first) == sorted(second) == list(range(200))


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("order.placed", ["order.placed"], ["order", "order.placed.late", "orders.placed"]),
        ("order.*", ["order.placed", "order.x"], ["order", "order.placed.late", "a.order.placed"]),
        ("*.placed", ["order.placed"], ["placed", "a.order.placed"]),
        ("order.#", ["order", "order.placed", "order.placed.late"], ["orders", "a.order"]),
        ("#.late", ["late", "order.placed.late"], ["late.order"]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "a.z.b"]),
        ("#", ["a", "a.b.c"], []),
        ("*", ["a"], ["a.b"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("#.*", ["a", "a.b"], []),
        ("a.*.#", ["a.b", "a.b.c"], ["a"]),
    ],
)
async def test_d2_patterns_mean_what_amqp_says(
    stage: Stage, pattern: str, matching: list[str], other: list[str]
) -> None:
    log: Log[str] = Log()
    service = Service("listener")

    @service.on(pattern)
    async def listen(message: Message) -> None:
        log.append(message.type)

    async with stage.hosting(service):
        for kind in (*other, *matching):
            await stage.raw(kind, b"{}")
        await log.reaches(len(matching))
        await asyncio.sleep(0.02)
    assert sorted(log) == sorted(matching)


async def test_d3_a_worker_that_dies_in_a_handler_loses_nothing_and_the_second_run_publishes_the_same_ids(
    stage: Stage,
) -> None:
    runs: Log[int] = Log()
    published: Log[tuple[str, ...]] = Log()
    release = asyncio.Event()

    def seen(handler: object, process: object) -> object:
        async def watched(delivery: object) -> object:
            outcome = await process(delivery)  # type: ignore[operator]
            published.append(tuple(outgoing.message.id for outgoing in outcome.publish))
            if len(published) == 1:
                await asyncio.Event().wait()  # it is done, and dies before it can say so
            return outcome

        return watched

    service = Service("mortal")

    @service.on(Placed)
    async def work(placed: Placed, context: Context) -> Shipped:
        runs.append(context.attempt)
        context.publish(Shipped(number=1), Shipped(number=1))
        return Shipped(number=2)

    async with stage.hosting(service, middleware=[seen]) as hosted:  # type: ignore[list-item]
        await stage.bus.publish(Placed())
        await published.reaches(1)
        await hosted.die()
    async with stage.hosting(service, middleware=[seen]):  # type: ignore[list-item]
        await published.reaches(2)
    release.set()
    assert runs == [1, 1]
    assert published[0] == published[1]
    assert len(set(published[0])) == 3


async def test_d3_a_delivery_is_not_acked_before_what_it_published_is_stored_and_the_log_says_what_was_settled(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("careful")

    @service.on(Placed, retry=immediate(2))
    async def work(placed: Placed, context: Context) -> None:
        context.publish(Shipped(), to="nobody.here")

    caplog.set_level("INFO", logger="tidegate")
    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("careful")
    assert (letter.failure.error_type, letter.failure.attempts) == ("Unroutable", 2)
    told = [record.getMessage() for record in caplog.records if "handler=work" in record.getMessage()]
    assert [line.partition(" service=")[0] for line in told] == ["event=retry", "event=dead letter"]


async def test_d3_a_worker_that_dies_before_its_events_are_stored_has_not_acked(rabbitmq: Stage) -> None:
    runs: Log[int] = Log()
    service = Service("careful")

    @service.on(Placed)
    async def work(placed: Placed, context: Context) -> None:
        runs.append(placed.number)
        if len(runs) == 1:
            context.publish(Shipped(), to="full")

    async with await aio_pika.connect(rabbitmq.settings.url) as connection, connection.channel() as channel:
        arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await channel.declare_queue("full", durable=True, arguments=arguments)
    async with rabbitmq.hosting(service) as hosted:
        await rabbitmq.bus.publish(Placed(number=1))
        await runs.reaches(1)
        await asyncio.sleep(0.3)
        await hosted.die()
    async with rabbitmq.hosting(service):
        await runs.reaches(2)


async def test_d3_an_ack_waits_for_the_confirms_of_what_was_published(
    rabbitmq: Stage, proxy: Proxy, vhost_name: str
) -> None:
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=5) as stage:
        runs: Log[int] = Log()
        results: Log[str] = Log()
        service = Service("careful")

        @service.on(Placed)
        async def work(placed: Placed) -> Shipped:
            runs.append(placed.number)
            proxy.drop()  # before anything of this run can be stored
            return Shipped(number=placed.number)

        @service.on(Shipped)
        async def collect(message: Shipped, context: Context) -> None:
            results.append(context.message.id)

        async with stage.hosting(service):
            # not by the link that is dropped: what it had no confirm of yet would be published again
            await rabbitmq.bus.publish(Placed(number=1))
            await results.reaches(1)
    assert len(set(results)) == 1
    assert runs == [1]


async def test_d4_a_service_runs_no_more_than_its_concurrency_at_once(stage: Stage) -> None:
    running, most = 0, 0
    done: Log[int] = Log()
    service = Service("limited", concurrency=5)

    async def work(placed: Placed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done.append(placed.number)

    service.on(Placed, name="one")(work)
    service.on(Placed, name="two")(work)
    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(40)))
        await done.reaches(80)
    assert most == 5


async def test_d4_a_handler_that_sets_its_own_limit_keeps_it(stage: Stage) -> None:
    running, most = 0, 0
    done: Log[int] = Log()
    service = Service("limited", concurrency=16)

    @service.on(Placed, concurrency=2)
    async def work(placed: Placed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        done.append(placed.number)

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(30)))
        await done.reaches(30)
    assert most == 2


@pytest.mark.parametrize("handlers", [1, 2, 4])
async def test_d4_the_unsettled_of_a_service_are_twice_its_concurrency_at_most(stage: Stage, handlers: int) -> None:
    running: Log[str] = Log()
    service = Service("busy", concurrency=3)
    names = [f"handler{number}" for number in range(handlers)]

    async def hang(placed: Placed, context: Context) -> None:
        running.append(context.message.id)
        await asyncio.Event().wait()

    for name in names:
        service.on(Placed, name=name)(hang)
    async with stage.hosting(service, grace=0.1):
        await stage.bus.publish(*(Placed(number=number) for number in range(20)))
        await running.reaches(3)
        await asyncio.sleep(0.4)  # whatever else it would take has come by then
        ready = sum([await stage.ready(f"busy.{name}") for name in names])
    assert 20 * len(names) - ready <= max(2 * 3, len(names))
    assert len(running) == 3


async def test_d4_a_handler_that_never_returns_starves_no_neighbour_of_the_other_slots(stage: Stage) -> None:
    done: Log[int] = Log()
    hanging = asyncio.Event()
    service = Service("shared", concurrency=4)

    @service.on(Shipped)
    async def hang(shipped: Shipped) -> None:
        hanging.set()
        await asyncio.Event().wait()

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        done.append(placed.number)

    async with stage.hosting(service, grace=0.1):
        await stage.bus.publish(Shipped())
        await hanging.wait()
        await stage.bus.publish(*(Placed(number=number) for number in range(100)))
        await done.reaches(100)


async def test_d4_a_handler_that_never_awaits_lets_others_run(stage: Stage) -> None:
    log: Log[str] = Log()
    service, other = Service("greedy", concurrency=64), Service("other")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        log.append("greedy")

    @other.on(Shipped)
    async def neighbour(shipped: Shipped) -> None:
        log.append("other")

    async with stage.hosting(service, other) as hosted:
        for name in ("greedy", "other"):
            hosted.worker.pause(name)
        for _ in range(4):
            await stage.bus.publish(*(Placed(number=number) for number in range(100)))
        await stage.bus.publish(*(Shipped(number=number) for number in range(10)))
        await hosted.consumes()
        hosted.worker.resume("greedy")
        if stage.kind == "memory":  # elsewhere it may be done before the broker lets the other one begin
            await log.reaches(1)
        hosted.worker.resume("other")
        await log.reaches(410)
    assert log[-1] == "greedy"


async def test_an_address_reaches_one_queue_only(stage: Stage) -> None:
    log: Log[str] = Log()
    service = Service("pair")

    @service.on(Placed, name="first")
    async def first(placed: Placed) -> None:
        log.append("first")

    @service.on(Placed, name="second", retry=fixed(2, 0.1))
    async def second(placed: Placed) -> None:
        log.append("second")

    async with stage.hosting(service):
        message = stage.bus.message(Placed())
        await stage.transport.publish([Outgoing(message, NOW, address="pair.second")])
        await log.reaches(1)
        await asyncio.sleep(0.05)
    assert log == ["second"]
