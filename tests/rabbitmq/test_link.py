"""The link against a real broker: what was measured on the prototype stays true."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import replace
from random import Random

from pamqp import commands

from bus.errors import Fate
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.channel import ChannelClosed, Parcel
from bus.transport.rabbitmq.link import HIGH_WATER, Link

from .links import QUORUM, address_of, connected, consume, count, declare, fill, settle, to


# publishing


async def test_returns_among_confirms_are_credited_to_the_message_that_came_back(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "here", QUORUM)
        channel = await link.channel(confirm=True)
        random = Random(3)
        batches, expected = [], []
        for n in range(1000):
            # few ids, so that many messages of one id are under way at once, and some have none
            parcels = [
                to(random.choice(("here", "here", "nowhere")), id=str(n % 7))
                if random.random() < 0.8
                else Parcel("none", "", random.choice(("here", "nowhere")), 0, b"", b"", mandatory=True)
                for _ in range(3)
            ]
            batches.append(channel.publish(parcels))
            expected.append([Fate.STORED if parcel.key == "here" else Fate.UNROUTABLE for parcel in parcels])
        assert [await batch.future for batch in batches] == expected
        assert await count(link, "here") == sum(fates.count(Fate.STORED) for fates in expected)


async def test_every_message_of_a_large_batch_is_confirmed(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        await fill(link, "q", 5000)
        assert await count(link, "q") == 5000


async def test_a_refusing_queue_stores_what_was_not_refused(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "small", {"x-max-length": 100, "x-overflow": "reject-publish"})
        channel = await link.channel(confirm=True)
        batches = [channel.publish([to("small", str(n))]) for n in range(1000)]
        fates = Counter([(await batch.future)[0] for batch in batches])
        assert fates == {Fate.STORED: 100, Fate.REFUSED: 900}
        assert await count(link, "small") == 100


async def test_a_missing_exchange_amid_two_thousand_publishes_closes_that_channel_alone(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        channel, neighbour = await link.channel(confirm=True), await link.channel(confirm=True)
        batches = []
        for n in range(2000):
            parcel = to("q", str(n))
            batches.append(channel.publish([parcel if n != 1000 else replace(parcel, exchange="missing")]))
            if n % 100 == 0:
                await asyncio.sleep(0)
        beside = [neighbour.publish([to("q", f"beside {n}")]) for n in range(100)]
        fates = [(await batch.future)[0] for batch in batches]
        assert isinstance(channel.error, ChannelClosed)
        assert channel.error.code == 404
        assert "missing" in channel.error.text
        assert set(fates[1000:]) == {Fate.UNKNOWN}
        assert {(await batch.future)[0] for batch in beside} == {Fate.STORED}
        assert await count(link, "q") >= fates.count(Fate.STORED) + 100
        await (await link.channel()).aclose()


async def test_publishes_cancelled_at_any_moment_leave_nothing_behind(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        channel = await link.channel(confirm=True)
        random = Random(5)

        async def publish(n: int) -> None:
            await link.writable()
            await channel.publish([to("q", str(n))]).future

        for _ in range(20):
            tasks = [asyncio.ensure_future(publish(n)) for n in range(100)]
            for _ in range(random.randrange(10)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert await channel.publish([to("q", "last"), to("nowhere", "last")]).future == [
            Fate.STORED,
            Fate.UNROUTABLE,
        ]
        assert not channel._pending


async def test_bodies_of_every_size_come_out_as_they_went_in(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q")
        channel = await link.channel(confirm=True)
        edge = link.frame_max - 8
        sizes = [0, 1, edge - 1, edge, edge + 1, 2 * edge, 2 * edge + 1, 15 << 20]
        bodies = [Random(size).randbytes(size) for size in sizes]
        assert set(await channel.publish([to("q", str(len(body)), body) for body in bodies]).future) == {Fate.STORED}
        _, inbox = await consume(link, "q", 0)
        for body in bodies:
            came = (await inbox.get()).body
            assert (len(came), hashlib.sha256(came).digest()) == (len(body), hashlib.sha256(body).digest())


async def test_many_publishers_of_large_messages_fill_no_memory(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", {"x-max-length": 5})
        channel = await link.channel(confirm=True)
        body, most = bytes(1 << 18), 0
        transport = link._transport
        assert transport is not None

        async def publisher() -> None:
            nonlocal most
            for n in range(4):
                await link.writable()
                batch = channel.publish([to("q", str(n), body)])
                most = max(most, transport.get_write_buffer_size() + link._out_bytes)
                assert await batch.future == [Fate.STORED]

        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(publisher())
        assert most <= HIGH_WATER + 3 * len(body)


# consuming


async def test_deliveries_settled_in_any_order_are_all_acked(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q")
        await fill(link, "q", 3000)
        channel, inbox = await consume(link, "q", 200)
        handled: list[str] = []

        async def worker(random: Random) -> None:
            while len(handled) < 3000:
                received = await inbox.get()
                for _ in range(random.randrange(5)):
                    await asyncio.sleep(0)
                handled.append(settle(received))
            for other in workers:
                other.cancel()

        workers = [asyncio.ensure_future(worker(Random(n))) for n in range(100)]
        await asyncio.gather(*workers, return_exceptions=True)
        assert sorted(handled, key=int) == [str(n) for n in range(3000)]
        assert await channel.aclose()
        assert await count(link, "q") == 0


async def test_waits_that_are_cancelled_lose_no_delivery_and_double_none(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q")
        channel, inbox = await consume(link, "q", 50)
        handled: list[str] = []

        async def impatient(random: Random) -> None:
            while len(handled) < 2000:
                try:
                    async with asyncio.timeout(random.random() / 1000):
                        handled.append(settle(await inbox.get()))
                except TimeoutError:
                    continue

        async with asyncio.TaskGroup() as tasks:
            for n in range(10):
                tasks.create_task(impatient(Random(n)))
            await fill(link, "q", 2000)
        assert sorted(handled, key=int) == [str(n) for n in range(2000)]
        assert await channel.aclose()
        assert await count(link, "q") == 0


async def test_a_consumer_that_stops_gives_back_its_buffer_and_starts_again(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q")
        await fill(link, "q", 2000)
        channel, inbox = await consume(link, "q", 100)
        handled: list[str] = []

        async def worker() -> None:
            while True:
                received = await inbox.get()
                await asyncio.sleep(0)
                handled.append(settle(received))

        workers = [asyncio.ensure_future(worker()) for _ in range(40)]
        for n in range(25):
            await channel.rpc(commands.Basic.Cancel(consumer_tag=f"tag{n or ''}"))
            channel.release(wire.delivered(received.method)[0] for received in inbox.take_back(channel))
            await channel.rpc(commands.Basic.Qos(prefetch_count=10 + n * 7))
            await channel.rpc(commands.Basic.Consume(queue="q", consumer_tag=f"tag{n + 1}"))
        while len(handled) < 2000:
            await asyncio.sleep(0.001)
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert sorted(handled, key=int) == [str(n) for n in range(2000)]
        assert await channel.aclose()
        assert await count(link, "q") == 0


async def test_a_deleted_queue_tells_its_consumer_and_leaves_the_channel_open(vhost: str) -> None:
    async with connected(vhost) as link:
        await declare(link, "q", QUORUM)
        channel, _ = await consume(link, "q", 10)
        cancelled = asyncio.Event()
        channel.on_cancelled = cancelled.set
        scratch = await link.channel()
        await scratch.rpc(commands.Queue.Delete(queue="q"))
        await cancelled.wait()
        await declare(link, "q", QUORUM)
        await channel.rpc(commands.Basic.Consume(queue="q", consumer_tag="again"))
        assert channel.error is None


class Crumbs(Link):
    """A link whose socket hands out a few bytes at a time."""

    def data_received(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = 1 + at % 9
            super().data_received(data[at : at + size])
            at += size


async def test_a_socket_that_hands_out_a_few_bytes_at_a_time_serves_as_well(vhost: str) -> None:
    link = await Crumbs.connect(address_of(vhost))
    await declare(link, "q")
    await fill(link, "q", 200)
    channel, inbox = await consume(link, "q", 50)
    assert [settle(await inbox.get()) for _ in range(200)] == [str(n) for n in range(200)]
    assert await channel.aclose()
    assert await count(link, "q") == 0
    await link.aclose()
