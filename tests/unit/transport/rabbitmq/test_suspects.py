"""Marks of suspects, at a stream that is played: a run that never began is no run that died, whatever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace as Bare
from typing import Any

import pytest

from bus import Message
from bus.clock import now
from bus.errors import BusUnavailable, DeliveryLost, Unroutable
from bus.transport.rabbitmq import copies, suspects, wire
from bus.transport.rabbitmq.channel import ChannelClosed, Parcel
from bus.transport.rabbitmq.delivery import RabbitMQDelivery
from bus.transport.rabbitmq.suspects import BEGUN, KEY, TOKEN, Suspects


NO_REPLICA = ChannelClosed(406, "PRECONDITION_FAILED - stream does not have a running replica on the local node")


class Played:
    """The stream of marks, as far as its broker can be reached, and who reads it."""

    def __init__(self) -> None:
        self.marks: list[dict[str, Any]] = []
        self.reads: list[Exception | None] = []
        """What the next reads come to; None: they wait for ever."""
        self.confirms: list[asyncio.Event] = []
        """When the next marks are confirmed; at once, where nothing is said."""
        self.read = asyncio.Event()
        self.at_once = 1_000
        """How many marks a read gets before nothing more comes."""
        self.error: ConnectionError | None = None
        self.there = True

    async def store(self, parcels: Sequence[Parcel]) -> None:
        if not self.there:
            raise Unroutable("there is no queue 'sick.suspects'", {})
        for parcel in parcels:
            properties = bytes(12) + parcel.flags.to_bytes(2, "big") + parcel.properties
            self.marks.append(wire.properties(properties)["headers"])
        if self.confirms:
            await self.confirms.pop(0).wait()

    async def declare(self) -> None:
        self.there = True

    def deleted(self) -> None:
        self.marks, self.there = [], False

    def worker(self) -> Suspects:
        return Suspects(self, "sick.suspects", "sick.retry", self.store, self.declare)  # type: ignore[arg-type]

    async def link(self) -> Played:
        return self

    async def channel(self) -> Channel:
        return Channel(self)

    @property
    def open(self) -> set[str]:
        """The tokens of the marks that were not ended."""
        tokens: set[str] = set()
        for mark in self.marks:
            (tokens.add if mark[BEGUN] else tokens.discard)(mark[TOKEN])
        return tokens


class Channel:
    """A channel that reads the played stream."""

    error = None
    on_delivery: Callable[[Any], None]

    def __init__(self, played: Played) -> None:
        self._played = played

    async def rpc(self, command: Any) -> None:
        if command.name != "Basic.Consume":
            return
        self._played.read.set()
        if self._played.reads:
            if (failure := self._played.reads.pop(0)) is None:
                await asyncio.Event().wait()
            else:
                raise failure
        begins = command.arguments["x-stream-offset"]
        first = 0 if begins == "first" else begins
        for offset, mark in enumerate(self._played.marks[: first + self._played.at_once]):
            if offset >= first:
                flags, properties = copies.encode({"headers": {**mark, "x-stream-offset": offset}})
                header = bytes(12) + flags.to_bytes(2, "big") + properties
                self.on_delivery(Bare(method=METHOD, header=header))

    def settle(self, tag: int) -> None: ...

    def leave(self) -> None: ...


METHOD = bytes.fromhex("003c003c") + b"\x01c" + (1).to_bytes(8, "big") + b"\x00" + b"\x00" + b"\x00"


def delivery(suspects: Suspects, *, id: str = "one", source: str = "/orders") -> RabbitMQDelivery:
    made = object.__new__(RabbitMQDelivery)
    message = Message(id=id, type="order.placed", version=1, source=source, time=now(), body=b"{}")
    made._received = Bare(channel=Bare(error=None, closed=asyncio.Event()))  # type: ignore[assignment]
    made._settling = Bare(suspects=suspects, subscription=Bare(name="sick.work", handler="work"))  # type: ignore[assignment]
    made._arrived = Bare(message=message)  # type: ignore[assignment]
    made._run = ""
    return made


async def test_what_could_not_be_read_often_counts_as_one_run_that_begins() -> None:
    played = Played()
    played.reads = [NO_REPLICA] * 4
    suspect = delivery(played.worker())
    assert await suspect.begin() == 0
    await suspect.end()
    assert played.open == set()
    assert await delivery(played.worker()).begin() == 0


async def test_runs_that_began_and_never_ended_are_counted_and_one_in_place_again_is_not() -> None:
    played = Played()
    for crashes in range(3):
        assert await delivery(played.worker()).begin() == crashes
    last = delivery(played.worker())
    for _ in range(3):
        assert await last.begin() == 3
        await last.end()
    assert await delivery(played.worker()).begin() == 3


@pytest.mark.parametrize("ends", ["cancelled", "lost", "unforeseen"])
async def test_a_begin_that_ends_before_its_run_leaves_no_mark(ends: str) -> None:
    played = Played()
    played.reads = [{"cancelled": None, "lost": NO_REPLICA, "unforeseen": ValueError("unforeseen")}[ends]]
    suspect = delivery(played.worker())
    beginning = asyncio.ensure_future(suspect.begin())
    await played.read.wait()
    if ends == "cancelled":
        beginning.cancel()
    channel = suspect._received.channel
    channel.error = ConnectionResetError("gone")
    channel.closed.set()
    with pytest.raises({"cancelled": asyncio.CancelledError, "lost": DeliveryLost, "unforeseen": ValueError}[ends]):
        await beginning
    assert [mark[BEGUN] for mark in played.marks] == [True, False]
    assert played.open == set()


async def test_what_was_lost_before_it_began_stores_nothing() -> None:
    played = Played()
    suspect = delivery(played.worker())
    suspect._received.channel.error = ConnectionResetError("gone")
    with pytest.raises(DeliveryLost):
        await suspect.begin()
    assert played.marks == []


async def test_who_may_write_marks_and_not_read_them_leaves_none() -> None:
    played = Played()
    played.reads = [ChannelClosed(403, "ACCESS_REFUSED - read access refused")]
    suspect = delivery(played.worker())
    assert await suspect.begin() == 0
    await suspect.end()
    assert len(played.marks) == 2
    assert played.open == set()


async def test_a_mark_that_another_begin_has_read_is_not_waited_for() -> None:
    played = Played()
    worker, late = played.worker(), asyncio.Event()
    played.confirms = [late]
    beginning = asyncio.ensure_future(delivery(worker, id="one").begin())
    await asyncio.sleep(0)
    assert await delivery(worker, id="other").begin() == 0
    late.set()
    assert await beginning == 0
    assert [mark[BEGUN] for mark in played.marks] == [True, True]
    assert played.marks[0][KEY] != played.marks[1][KEY]


async def test_what_one_source_marks_is_nothing_to_another_with_the_same_id() -> None:
    played = Played()
    for crashes in range(3):
        assert await delivery(played.worker(), source="/orders").begin() == crashes
    assert await delivery(played.worker(), source="/legacy").begin() == 0


async def test_marks_of_another_version_are_read_over() -> None:
    played = Played()
    played.marks = [{KEY: "work one", TOKEN: "old", BEGUN: True}, {KEY: 7}, {}]
    assert await delivery(played.worker()).begin() == 0


async def test_a_stream_that_was_deleted_is_read_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "READ_WITHIN", 0.05)
    played = Played()
    worker = played.worker()
    for run in ("a", "b", "c"):
        await worker.begin("work one", run)
        await worker.end("work one", run)
    assert await worker.begin("work other", "died") == 0
    played.deleted()
    assert await worker.begin("work other", "d") == 0
    assert await worker.begin("work other", "e") == 1


async def test_a_stream_that_another_declared_again_is_read_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "READ_WITHIN", 0.05)
    played = Played()
    worker, other = played.worker(), played.worker()
    for run in ("a", "b", "c", "d"):
        await worker.begin("work one", run)
    played.deleted()
    assert await other.begin("work one", "e") == 0
    with pytest.raises(BusUnavailable, match="could not be read"):
        await worker.begin("work one", "f")
    assert await worker.begin("work one", "f") == 1


async def test_f5_marks_that_take_longer_to_read_than_is_waited_for_are_read_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suspects, "READ_WITHIN", 0.05)
    played = Played()
    await played.worker().begin("work one", "died")
    others = played.worker()
    for number in range(50):
        await others.begin("work other", f"{number}")
        await others.end("work other", f"{number}")
    worker, played.at_once = played.worker(), 40
    for _ in range(2):
        with pytest.raises(BusUnavailable, match="could not be read"):
            await worker.begin("work one", "mine")
    assert await worker.begin("work one", "mine") == 1


async def test_f5_marks_that_came_while_the_loop_was_busy_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "READ_WITHIN", 0.2)
    played, read, loop = Played(), Channel.rpc, asyncio.get_running_loop()

    async def late(channel: Channel, command: Any) -> None:
        def busy() -> None:
            time.sleep(0.25)
            loop.call_soon(asyncio.ensure_future, read(channel, command))

        loop.call_soon(busy)

    monkeypatch.setattr(Channel, "rpc", late)
    assert await played.worker().begin("work one", "mine") == 0
