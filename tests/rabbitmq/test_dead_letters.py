"""The stream of dead letters on a real broker: its end, its generations, what the broker puts there by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest
import pytest_asyncio
from pamqp import commands

from bus import BusUnavailable, Event, Letter, Message, Reject, Service
from bus.outcome import DeadLetter, Failure
from bus.transport.memory import MemoryTransport
from bus.transport.rabbitmq import compaction, copies, stream, topology
from bus.transport.rabbitmq.channel import Channel, Parcel, Received
from bus.transport.rabbitmq.desk import Desk
from bus.transport.rabbitmq.fold import Noted, Row
from bus.transport.rabbitmq.records import Entry
from bus.transport.rabbitmq.stream import Reader
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy
from tests.contract.stage import Stage, staged


class Placed(Event, type="order.placed"):
    number: int = 0


@pytest_asyncio.fixture
async def stage(vhost: str) -> AsyncIterator[Stage]:
    async with staged("rabbitmq", vhost) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for what only a channel that is held up needs."""
    monkeypatch.setattr(compaction, "ROUTED_WITHIN", 0.0)


def shop() -> Service:
    service = Service("shop")

    @service.on(Placed)
    async def reserve(placed: Placed) -> None:
        raise Reject(f"no {placed.number}")

    return service


async def buried(stage: Stage, count: int) -> list[Letter]:
    async with stage.hosting(shop()):
        await stage.bus.publish(*(Placed(number=number) for number in range(count)))
        return await stage.letters("shop", count)


async def listed(stage: Stage) -> list[Letter]:
    return [letter async for letter in stage.transport.dead_letters.browse("shop")]


async def test_a_listing_is_whole_on_a_link_however_slow(stage: Stage, proxy: Proxy, vhost_name: str) -> None:
    expected = await buried(stage, 30)
    async with staged("rabbitmq", proxy.url(vhost_name)) as slow:
        proxy.delay = 0.35
        assert await listed(slow) == expected


async def test_no_listing_is_empty_because_the_first_entries_are_late(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await buried(stage, 3)
    monkeypatch.setattr(stream, "QUIET", 0.0)
    taken = Reader._deliver

    def late(self: Reader, received: Received) -> None:
        asyncio.get_running_loop().call_later(0.05, taken, self, received)

    # what the broker sends first is late, however soon it has answered
    monkeypatch.setattr(Reader, "_deliver", late)
    async with staged("rabbitmq", vhost) as other:
        assert [letter.id for letter in await listed(other)][:1] == [expected[0].id]


async def test_a_listing_through_a_silent_link_fails_and_is_never_empty(
    stage: Stage, proxy: Proxy, vhost_name: str
) -> None:
    expected = await buried(stage, 3)
    async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=0.5) as silent:
        assert await listed(silent) == expected
        proxy.blackhole(up=False, down=True)
        with pytest.raises(BusUnavailable):
            await listed(silent)
        proxy.drop()
        proxy.blackhole(up=False, down=False)
        assert await listed(silent) == expected


async def test_a_stream_without_letters_is_empty_however_often_it_is_looked_at(stage: Stage) -> None:
    assert await listed(stage) == []
    await stage.declare(shop())
    assert [await listed(stage) for _ in range(3)] == [[]] * 3
    (letter,) = await buried(stage, 1)
    assert await listed(stage) == [letter]


async def test_a_stream_that_was_deleted_and_declared_again_is_read_anew(stage: Stage) -> None:
    await buried(stage, 3)
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        await channel.queue_delete("shop.dead")
    found = await buried(stage, 1)
    assert await listed(stage) == found
    await stage.transport.dead_letters.replay(found[0])
    assert await listed(stage) == []


async def test_what_was_sent_and_not_noted_is_not_sent_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    (letter,) = await buried(stage, 1)
    close = Desk._close

    async def away(self: Desk, done: Noted) -> None:
        raise BusUnavailable("no confirm", {})

    with monkeypatch.context() as patched:
        patched.setattr(Desk, "_close", away)
        with pytest.raises(BusUnavailable, match="it was replayed, but that could not be noted"):
            await stage.transport.dead_letters.replay(letter)
    assert Desk._close is close
    await stage.transport.dead_letters.replay(letter)
    assert await stage.ready("shop.reserve") == 1
    assert await listed(stage) == []


async def test_a_claim_that_a_lost_connection_left_behind_is_its_owners(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, vhost: str
) -> None:
    (letter,) = await buried(stage, 1)

    async def away(self: Desk, row: Row) -> Entry:
        raise BusUnavailable("no broker answers", {})

    with monkeypatch.context() as patched:
        patched.setattr(Desk, "entry", away)
        with pytest.raises(BusUnavailable):
            await stage.transport.dead_letters.replay(letter)
    async with staged("rabbitmq", vhost) as other:
        with pytest.raises(LookupError, match=r"is being handled by somebody else: .*@.* since"):
            await other.transport.dead_letters.replay(letter)
    await stage.transport.dead_letters.replay(letter)
    assert await stage.ready("shop.reserve") == 1


async def test_a_compaction_may_be_cut_off_anywhere(stage: Stage, proxy: Proxy, vhost_name: str) -> None:
    letters = await buried(stage, 8)
    dead = stage.transport.dead_letters
    for letter in letters[:3]:
        await dead.discard(letter)
    expected, cut, whole = letters[3:], 1_500, False
    while not whole:
        proxy.cut_after(cut)
        try:
            async with staged("rabbitmq", proxy.url(vhost_name), publish_timeout=2) as weak:
                await weak.transport.dead_letters.compact("shop")
            whole = True
        except BusUnavailable:
            cut += 1_500
        proxy.cut_after(None)
        assert [letter.id for letter in await listed(stage)] == [letter.id for letter in expected]
        # an operator goes on meanwhile, and so does a worker
        if len(expected) > 2:
            await dead.discard(expected.pop(0))
    await dead.compact("shop")
    assert await listed(stage) == expected
    assert [letter.id async for letter in dead.browse("shop", closed=True)] == [letter.id for letter in expected]
    assert await streams(stage, 10) <= 1


async def streams(stage: Stage, most: int) -> int:
    """Return how many generations of the shop's letters there are."""
    found = 0
    async with await aio_pika.connect(stage.settings.url) as connection:
        for name in ("shop.dead", *(f"shop.dead.{number}" for number in range(1, most))):
            channel = await connection.channel()
            try:
                await channel.declare_queue(name, passive=True)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                continue
            found += 1
            await channel.close()
    return found


async def test_letters_that_come_while_generations_change_are_all_there(stage: Stage, vhost: str) -> None:
    dead = stage.transport.dead_letters
    count = 300
    async with stage.hosting(shop()), staged("rabbitmq", vhost) as operator:
        await stage.bus.publish(Placed(number=-1))
        await stage.letters("shop")
        erased = 0

        async def come() -> None:
            for number in range(count):
                await stage.bus.publish(Placed(number=number))

        async with asyncio.TaskGroup() as tasks:
            coming = tasks.create_task(come())
            while not coming.done():
                (first, *_) = await listed(operator)
                await operator.transport.dead_letters.discard(first)
                await dead.compact("shop")
                erased += 1
        found = await stage.letters("shop", count + 1 - erased)
    numbers = sorted(json.loads(letter.message.body)["number"] for letter in found)
    assert len(numbers) == len(set(numbers)) == count + 1 - erased
    assert erased > 1
    assert await streams(stage, 60) == 1


async def test_a_letter_that_was_on_its_way_to_the_older_generation_is_carried_too(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "ROUTED_WITHIN", 1.0)
    letters = await buried(stage, 2)
    await stage.transport.dead_letters.discard(letters[0])
    ask = compaction.ask
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        late = await channel.declare_exchange("late", "fanout", durable=True)
        await (await channel.get_queue("shop.dead")).bind(late)

        async def arrive() -> None:
            await asyncio.sleep(0.3)
            message = aio_pika.Message(b"{}", message_id="late", delivery_mode=2)
            await late.publish(message, "shop.reserve")  # raises where its stream is gone

        async def unbound(channel: Channel, command: Any, within: float = 10.0) -> Any:
            answer = await ask(channel, command, within)
            if isinstance(command, commands.Queue.Unbind) and not coming:
                coming.append(tasks.create_task(arrive()))
            return answer

        coming: list[asyncio.Task[None]] = []
        monkeypatch.setattr(compaction, "ask", unbound)
        async with asyncio.TaskGroup() as tasks:
            assert await stage.transport.dead_letters.compact("shop") == (2, 1)
    assert [letter.message.id for letter in await listed(stage)] == [letters[1].message.id, "late"]


async def test_a_compaction_unbinds_the_older_generation_as_a_worker_bound_it(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (letter,) = await buried(stage, 1)
    await stage.transport.dead_letters.discard(letter)
    ask = compaction.ask

    async def cut(channel: Channel, command: Any, within: float = 10.0) -> Any:
        if isinstance(command, commands.Queue.Delete) and command.queue == "shop.dead":
            raise BusUnavailable("cut off", {})
        return await ask(channel, command, within)

    monkeypatch.setattr(compaction, "ask", cut)
    with pytest.raises(BusUnavailable, match="cut off"):
        await stage.transport.dead_letters.compact("shop")
    async with await aio_pika.connect(vhost) as connection, connection.channel(on_return_raises=True) as channel:
        await channel.queue_delete("shop.dead.1")
        dead = await channel.get_exchange("shop.dead")
        with pytest.raises(aio_pika.exceptions.DeliveryError):
            await dead.publish(aio_pika.Message(b"{}", delivery_mode=2), "shop.reserve")


async def test_a_worker_that_starts_after_a_compaction_uses_the_new_generation(stage: Stage) -> None:
    first, second = await buried(stage, 2)
    await stage.transport.dead_letters.discard(first)
    await stage.transport.dead_letters.compact("shop")
    assert await streams(stage, 4) == 1
    async with stage.hosting(shop()):
        await stage.bus.publish(Placed(number=2))
        found = await stage.letters("shop", 2)
    assert found[0] == second
    assert await streams(stage, 4) == 1


async def test_two_compactions_at_once_are_one(stage: Stage, vhost: str) -> None:
    letters = await buried(stage, 3)
    await stage.transport.dead_letters.discard(letters[0])
    async with staged("rabbitmq", vhost) as other:
        both = [each.transport.dead_letters.compact("shop") for each in (stage, other)]
        came = await asyncio.gather(*both, return_exceptions=True)
    assert (2, 1) in came
    assert all(one in ((2, 1), (2, 0)) or "by somebody else" in str(one) for one in came)
    assert await listed(stage) == letters[1:]


async def test_what_was_read_before_a_compaction_can_be_acted_on_after_it(stage: Stage, vhost: str) -> None:
    letters = await buried(stage, 3)
    async with staged("rabbitmq", vhost) as other:
        # the other operator has looked, and is told of nothing
        looking = other.transport.dead_letters.browse("shop")
        assert await anext(looking) == letters[0]
        await stage.transport.dead_letters.discard(letters[0])
        await stage.transport.dead_letters.compact("shop")
        await other.transport.dead_letters.replay(letters[1])
        with pytest.raises(LookupError):
            await other.transport.dead_letters.replay(letters[0])
    assert await stage.ready("shop.reserve") == 1
    assert await listed(stage) == letters[2:]


async def test_a_message_that_claims_to_be_a_mark_is_a_letter_all_the_same(stage: Stage) -> None:
    forged = {
        "tidegate-letter-mark": "discarded",
        "tidegate-letter-id": "0-0",
        "tidegate-letter-key": "00" * 12,
        "tidegate-letter-turn": 7,
        "tidegate-failure-handler": "elsewhere",
        "tidegate-failure-reason": "crash",
        "tidegate-attempt": 99,
    }
    async with stage.hosting(shop()):
        await stage.raw("order.placed", b'{"number": 1}', forged, message_id="worker")
        (one,) = await stage.letters("shop")
        assert (one.id.partition("-")[0], one.failure.reason, one.handler) == ("0", "rejected", "reserve")
    await stage.raw("order.placed", b'{"number": 2}', forged, message_id="broker", expiration=0.05)
    both = await stage.letters("shop", 2)
    assert (both[1].failure.reason, both[1].handler, both[1].message.id) == ("expired", "reserve", "broker")
    for letter in both:
        await stage.transport.dead_letters.discard(letter)
    assert await listed(stage) == []


async def test_what_the_broker_gives_up_on_again_after_a_replay_is_a_letter_again(
    stage: Stage, broker: Shared, vhost_name: str
) -> None:
    await stage.declare(shop())
    broker.node.ctl("set_policy", "-p", vhost_name, "low", "^shop.reserve$", '{"delivery-limit": 3}')
    await stage.raw("order.placed", b'{"number": 1}', message_id="m", expiration=0.05)
    (letter,) = await stage.letters("shop")
    await stage.transport.dead_letters.replay(letter)
    # it waits in its queue without an expiration now; the queue gives up on it by its limit of deliveries
    await given_back(stage, "shop.reserve", 4)
    (again,) = await stage.letters("shop")
    assert (again.message.id, again.failed_again, again.failure.reason) == ("m", 1, "broker")
    assert "delivery_limit" in again.failure.error
    assert (again.handler, again.failure.attempts, again.failure.worker) == ("reserve", 0, "")
    assert again.id != letter.id
    assert again.message.body == b'{"number": 1}'


async def given_back(stage: Stage, queue: str, times: int) -> None:
    """Take what is in a queue and give it back, so often."""
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        await channel.set_qos(prefetch_count=1)
        back: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        await (await channel.get_queue(queue)).consume(back.put)
        for _ in range(times):
            await (await back.get()).reject(requeue=True)


async def test_messages_without_an_id_that_expired_are_letters_of_their_own(stage: Stage) -> None:
    await stage.declare(shop())
    await expire(stage, 2)
    found = await stage.letters("shop", 2)
    assert await listed(stage) == found
    await stage.transport.dead_letters.discard(found[0])
    await stage.transport.dead_letters.compact("shop")
    assert await listed(stage) == found[1:]


async def expire(stage: Stage, count: int) -> None:
    """Publish equal messages without an id that expire at once; no client of Python leaves the id out."""
    flags, properties = copies.encode({"expiration": "0", "delivery_mode": 2})
    parcel = Parcel("", "events", "order.placed", flags, properties, b'{"number": 1}')
    await stage.transport.dead_letters._streams.store([parcel] * count)


class CutOff(BaseException):
    """The process is gone."""


async def test_messages_without_an_id_that_come_to_both_generations_are_one_letter_each(
    stage: Stage, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded, kept = await buried(stage, 2)
    await stage.transport.dead_letters.discard(discarded)

    def cut_off(*_: object) -> None:
        raise CutOff

    # both are bound by then
    with monkeypatch.context() as patched:
        patched.setattr(compaction, "mark", cut_off)
        with pytest.raises(CutOff):
            await stage.transport.dead_letters.compact("shop")
    await expire(stage, 3)
    _, *expired = await stage.letters("shop", 4)
    await stage.transport.dead_letters.discard(expired[1])
    async with staged("rabbitmq", vhost) as other:
        assert await other.transport.dead_letters.compact("shop") == (3, 2)
        assert await listed(other) == await listed(stage) == [kept, expired[0], expired[2]]
        await expire(other, 1)
        *_, last = await other.letters("shop", 4)
        await other.transport.dead_letters.discard(expired[0])
        assert await other.transport.dead_letters.compact("shop") == (3, 1)
        assert [letter.id for letter in await listed(other)] == [kept.id, expired[2].id, last.id]
        assert last.id not in [letter.id for letter in expired]


async def test_a_letter_without_an_id_outlives_a_worker_that_starts_as_a_generation_is_announced(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded, kept = await buried(stage, 2)
    await stage.transport.dead_letters.discard(discarded)
    newest, cut, early = topology._newest, Desk.cut, [0]

    async def asked(connection: Any, names: Any, service: str, generation: int) -> int:
        # a moment before it was announced, at first
        return early.pop() if early else await newest(connection, names, service, generation)

    async def come(self: Desk, generation: int) -> None:
        monkeypatch.setattr(topology, "_newest", asked)
        await stage.declare(shop())
        flags, properties = copies.encode({"delivery_mode": 2})
        given_up = Parcel("", "shop.dead", "shop.reserve", flags, properties, b"given up")
        await stage.transport.dead_letters._streams.store([given_up])
        await cut(self, generation)

    monkeypatch.setattr(Desk, "cut", come)
    assert await stage.transport.dead_letters.compact("shop") == (2, 1)
    assert not early
    assert [letter.message.body for letter in await listed(stage)] == [kept.message.body, b"given up"]


async def test_nested_headers_and_bytes_survive_a_compaction_and_a_file(stage: Stage, broker: Shared) -> None:
    headers = {"nested": {"deep": [1, {"a": "b"}]}, "count": 7, "yes": True, "tenant": "blå", "CC": ["shop.reserve"]}
    body = bytes(range(256))
    async with stage.hosting(shop()):
        await stage.raw("order.placed", body, headers, message_id="m", correlation_id="c", reply_to="back")
        (letter,) = await stage.letters("shop")
    dead = stage.transport.dead_letters
    packed = json.loads(json.dumps(await dead.packed(letter)))
    await dead.discard(letter)
    await dead.restore("shop", packed)
    await dead.compact("shop")
    (kept,) = await listed(stage)
    assert (kept.id, kept.message.body, kept.failure) == (letter.id, body, letter.failure)
    await dead.replay(kept)
    async with await aio_pika.connect(stage.settings.url) as connection, connection.channel() as channel:
        came = await (await channel.get_queue("shop.reserve")).get()
        assert came.body == body
        assert {name: came.headers[name] for name in ("nested", "count", "yes", "tenant")} == {
            name: headers[name] for name in ("nested", "count", "yes", "tenant")
        }
        assert (came.message_id, came.correlation_id, came.reply_to) == ("m", "c", "back")
        assert not [name for name in came.headers if name.startswith("tidegate-failure-")]


async def test_a_file_of_the_memory_bus_is_read_here(stage: Stage) -> None:
    at = datetime.now(UTC) - timedelta(hours=1)
    memory = MemoryTransport()
    message = Message(
        id="m",
        type="order.placed",
        version=1,
        source="/x",
        time=at,
        body=b'{"number":3}',
        headers={"cc": "a", "x-b": "c"},
    )
    failure = Failure(
        service="shop",
        handler="reserve",
        reason="rejected",
        error_type="Reject",
        error="no",
        traceback="",
        attempts=1,
        first_failed_at=at,
        last_failed_at=at,
        worker="host:1",
    )
    memory.dead_letters.add(message, DeadLetter(failure))
    (letter,) = memory.dead_letters.open()
    await stage.declare(shop())
    packed = await memory.dead_letters.packed(letter)
    assert await stage.transport.dead_letters.restore("shop", packed)
    assert not await stage.transport.dead_letters.restore("shop", packed)
    (here,) = await listed(stage)
    assert (here.failure, here.message.id, here.message.body) == (failure, "m", message.body)
    assert dict(here.message.headers) == {"cc": "a", "x-b": "c"}
    await stage.transport.dead_letters.replay(here)
    assert await stage.ready("shop.reserve") == 1
