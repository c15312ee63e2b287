"""Bus, connect() and connect_sync()."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from bus import Bus, ConfigurationError, Event, MessageTooLarge, Settings, Unroutable, client, connect, connect_sync
from bus.message import Message, Outgoing
from bus.transport.memory import MemoryTransport


class Placed(Event, type="order.placed"):
    note: str = ""


class Recording(MemoryTransport):
    """A memory bus that keeps the calls of publish, and says whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[list[Outgoing]] = []
        self.closed = 0

    async def publish(self, messages: Any) -> None:
        self.published.append(list(messages))
        await super().publish(messages)

    async def aclose(self) -> None:
        self.closed += 1
        await super().aclose()


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """The transport that every memory URL opens."""
    recording = Recording()
    monkeypatch.setattr("bus.transport.memory.MemoryTransport", lambda: recording)
    return recording


@pytest.fixture(autouse=True)
def _no_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BUS_URL", raising=False)
    yield


async def test_events_are_published_in_one_call_and_their_ids_returned_in_order(transport: Recording) -> None:
    bus = Bus(transport, Settings(), "/test")
    ids = await bus.publish(Placed(note="1"), Placed(note="2"))
    (call,) = transport.published
    assert [outgoing.message.id for outgoing in call] == ids
    assert [outgoing.message.body for outgoing in call] == [b'{"note":"1"}', b'{"note":"2"}']
    assert len(set(ids)) == 2
    assert {outgoing.message.source for outgoing in call} == {"/test"}


async def test_how_an_event_is_published_is_told_to_the_transport(transport: Recording) -> None:
    bus = Bus(transport, Settings(), "/test")
    await bus.publish(Placed(), delay=timedelta(hours=1), headers={"tenant": "7"}, id="mine")
    ((delayed,),) = transport.published
    assert (delayed.delay, delayed.required, delayed.address) == (timedelta(hours=1), False, None)
    assert (delayed.message.id, delayed.message.correlation_id, dict(delayed.message.headers)) == (
        "mine",
        "mine",
        {"tenant": "7"},
    )
    with pytest.raises(Unroutable):
        await bus.publish(Placed(), required=True)
    with pytest.raises(Unroutable):
        await bus.publish(Placed(), to="shop.nobody")
    assert [(outgoing.required, outgoing.address) for (outgoing,) in transport.published[1:]] == [
        (True, None),
        (False, "shop.nobody"),
    ]
    await transport.aclose()


@pytest.mark.parametrize(
    ("arguments", "options", "told"),
    [
        ([Placed(), Placed()], {"id": "one"}, "takes one event, it got 2"),
        ([], {"id": "one"}, "takes one event, it got 0"),
        ([Placed()], {"delay": 1, "at": datetime(2026, 1, 1, tzinfo=UTC)}, "not both"),
        ([Placed()], {"delay": timedelta(days=311)}, "310 days"),
        ([Placed()], {"headers": {"x-a": "1"}}, "header 'x-a'"),
        ([Placed()], {"headers": {"a\udcff": "1"}}, "header 'a.*lone surrogate"),
        ([Placed()], {"headers": {"a": "1\udcff"}}, "header 'a': .*lone surrogate"),
        ([Placed()], {"headers": {"": "1"}}, "1 to 255 bytes"),
        ([Placed()], {"headers": {"ß" * 128: "1"}}, "1 to 255 bytes"),
        ([Placed()], {"headers": "x"}, "headers='x'; they are a dict"),
        ([Placed()], {"headers": {1: "x"}}, "header 1: its name is a string"),
        ([Placed()], {"id": UUID(int=7)}, r"id UUID\('0.*: it is of type UUID; give a string, such as str\(…\) of it"),
        ([Placed()], {"id": b"7"}, "id b'7': it is of type bytes; give a string$"),
        ([Placed()], {"id": 7}, "id 7: it is of type int; give a string"),
        ([Placed()], {"to": 3}, "to 3: it is of type int; give a string"),
        ([Placed()], {"at": 3}, "at=3; it is a datetime"),
        ([Placed()], {"delay": "5m"}, "delay='5m'; it is seconds"),
        ([[Placed()]], {}, r"it got a list: write publish\(\*events\)"),
        (["x"], {}, "it got a str"),
        ([Placed], {}, "it got a class"),
        ([Placed()], {"id": ""}, "id='' must have 1 to 255 bytes"),
        ([Placed()], {"id": "ß" * 128}, "must have 1 to 255 bytes"),
        ([Placed()], {"id": "one\nforged"}, "no control characters"),
        ([Placed()], {"id": "\ud800"}, "lone surrogate"),
        ([Placed()], {"to": ""}, "to='' is no queue"),
        ([Placed()], {"to": "q" * 256}, "is no queue"),
        ([Placed()], {"to": "\ud800"}, "lone surrogate"),
        ([Placed(note="\ud800")], {}, "order.placed: JSON cannot hold it"),
        ([Event()], {}, "has no type="),
    ],
)
async def test_a_publish_that_cannot_be_meant_sends_nothing(
    transport: Recording, arguments: list[Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await Bus(transport, Settings(), "/test").publish(*arguments, **options)
    assert transport.published == []


async def test_of_events_of_which_one_is_too_large_none_is_sent(transport: Recording) -> None:
    with pytest.raises(MessageTooLarge):
        await Bus(transport, Settings(max_message_bytes=20), "/test").publish(Placed(), Placed(note="x" * 20))
    assert transport.published == []


async def test_a_queue_that_is_not_there_is_named() -> None:
    bus = Bus(MemoryTransport(), Settings(), "/test")
    with pytest.raises(Unroutable, match=r"there is no queue 'nosuch', so nothing was sent to it \(7 unroutable\)"):
        await bus.publish(Placed(), to="nosuch", id="7")
    with pytest.raises(Unroutable, match=r"no queue wants 'order\.placed'"):
        await bus.publish(Placed(), required=True)


async def test_a_program_that_connects_is_warned_of_settings_that_are_none(
    transport: Recording, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUS_PUBLISH_TIME", "3")
    told = "event=unknown setting told=BUS_PUBLISH_TIME is no setting of Tidegate; did you mean BUS_PUBLISH_TIMEOUT?"
    async with connect("memory://"), connect("memory://", settings=Settings()):
        assert caplog.messages == [told]
    with connect_sync("memory://"):
        assert caplog.messages == [told, told]


async def test_a_program_connects_by_a_url_and_names_itself(transport: Recording) -> None:
    async with connect("memory://", source="/script") as bus:
        await bus.publish(Placed())
        assert transport.closed == 0
    ((outgoing,),) = transport.published
    assert outgoing.message.source == "/script"
    assert transport.closed == 1


async def test_the_url_of_a_call_comes_before_that_of_the_environment(
    transport: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_URL", "nonsense://")
    async with connect("memory://") as bus:
        assert bus.message(Placed()).source == "/client"
    monkeypatch.setenv("BUS_URL", "memory://")
    async with connect():
        pass
    assert transport.closed == 2


async def test_the_transport_is_closed_when_the_program_fails(transport: Recording) -> None:
    with pytest.raises(KeyError):
        async with connect("memory://"):
            raise KeyError
    assert transport.closed == 1


@pytest.mark.parametrize("url", [None, ""])
async def test_without_a_url_there_is_no_silent_memory_bus(url: str | None) -> None:
    with pytest.raises(ConfigurationError, match="Set BUS_URL"):
        async with connect(url):
            pass
    with pytest.raises(ConfigurationError, match="Set BUS_URL"), connect_sync(url):
        pass


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost", "BUS_URL: there is no amqp:// in front of it; a URL is amqp://user"),
        ("memory", "BUS_URL: there is no amqp:// in front of it; a URL is amqp://user"),
        ("localhost:5672", "BUS_URL: there is no amqp:// in front of it; a URL is amqp://user"),
        ("user:hunter2@host", "BUS_URL: there is no amqp:// in front of it; a URL is amqp://user"),
        ("http://user:hunter2@host", "'http'"),
        ("amqp://user:hunter2@[::1/", "BUS_URL: "),
        ("amqp://user:hunter2@host:port/", "BUS_URL: "),
    ],
)
async def test_a_url_of_no_bus_is_told_without_its_password(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        async with client.transport(Settings(url=url)):
            pass
    assert told in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_code_that_is_not_async_publishes_the_same(transport: Recording) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    with connect_sync("memory://", source="/web") as bus:
        ids = bus.publish(Placed(note="1"), Placed(note="2"), at=at, headers={"tenant": "7"})
        assert bus.publish(Placed(), id="mine") == ["mine"]
        with pytest.raises(Unroutable):
            bus.publish(Placed(), required=True)
        with pytest.raises(Unroutable):
            bus.publish(Placed(), to="shop.nobody")
    first, *_ = transport.published
    assert [outgoing.message.id for outgoing in first] == ids
    assert all(timedelta(minutes=59) < outgoing.delay <= timedelta(hours=1) for outgoing in first)
    assert [(dict(outgoing.message.headers), outgoing.message.source) for outgoing in first] == [
        ({"tenant": "7"}, "/web")
    ] * 2
    assert transport.closed == 1


async def test_a_closed_bus_says_so_and_sends_nothing(transport: Recording) -> None:
    async with connect("memory://") as bus:
        await bus.publish(Placed())
    with pytest.raises(ConfigurationError, match="this bus is closed, and nothing was sent"):
        await bus.publish(Placed())
    with pytest.raises(ConfigurationError, match="this bus is closed, and nothing was sent"):
        await bus.request(Placed(), Quoted, timeout=1)
    assert len(transport.published) == 1


def test_a_bus_of_another_event_loop_says_so_and_sends_nothing(transport: Recording) -> None:
    with asyncio.Runner() as home, asyncio.Runner() as other:
        scope = connect("memory://")
        bus = home.run(scope.__aenter__())
        for work in (bus.publish(Placed()), bus.request(Placed(), Quoted, timeout=1)):
            with pytest.raises(ConfigurationError, match="in another event loop, and nothing was sent: connect"):
                other.run(work)
        home.run(bus.publish(Placed()))
        home.run(scope.__aexit__(None, None, None))
    assert len(transport.published) == 1


def test_a_closed_bus_of_code_that_is_not_async_says_so(transport: Recording) -> None:
    with connect_sync("memory://") as bus:
        pass
    with pytest.raises(ConfigurationError, match="this bus is closed, and nothing was sent"):
        bus.publish(Placed())
    with pytest.raises(ConfigurationError, match="this bus is closed, and nothing was sent"):
        bus.request(Placed(), Quoted, timeout=1)
    assert transport.published == []


def test_threads_share_one_connection(transport: Recording) -> None:
    with connect_sync("memory://") as bus:
        threads = [threading.Thread(target=bus.publish, args=[Placed(note=str(number))]) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(call[0].message.body for call in transport.published) == [
        f'{{"note":"{number}"}}'.encode() for number in range(10)
    ]


def test_a_forked_child_is_told_to_connect_itself(transport: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_sync("memory://") as bus:
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ConfigurationError, match=r"call connect_sync\(\) in the child"):
                bus.publish(Placed())
        bus.publish(Placed())
    assert len(transport.published) == 1


@pytest.mark.parametrize(("scheme", "loaded"), [("memory", False), ("amqp", True)])
def test_a_broker_is_imported_only_where_a_url_asks_for_it(scheme: str, loaded: bool) -> None:
    code = (
        "import sys; from bus import Settings, client;"
        f"client.transport(Settings(url='{scheme}://host/'));"
        f"sys.exit(('aio_pika' in sys.modules) != {loaded})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


class Quoted(Event, type="quote.given"):
    number: int = 7


class Base(Event):
    pass


async def test_a_request_waits_for_one_type_and_for_some_time(transport: Recording) -> None:
    bus = Bus(transport, Settings(max_message_bytes=50), "/test")
    for timeout in (0, -1, timedelta()):
        with pytest.raises(ConfigurationError, match="leaves no time for an answer"):
            await bus.request(Placed(), Quoted, timeout=timeout)
    with pytest.raises(ConfigurationError, match="Base has no type="):
        await bus.request(Placed(), Base, timeout=1)
    with pytest.raises(ConfigurationError, match="timeout='5s'; it is seconds as a number, or a timedelta"):
        await bus.request(Placed(), Quoted, timeout="5s")  # type: ignore[arg-type]
    for reply in (Quoted(), "quote.given", int):
        with pytest.raises(ConfigurationError, match=r"request: reply=.*; it is the class of the event"):
            await bus.request(Placed(), reply, timeout=1)  # type: ignore[type-var, arg-type]
    with pytest.raises(ConfigurationError, match="it got a list"):
        await bus.request([Placed()], Quoted, timeout=1)  # type: ignore[arg-type]
    with pytest.raises(MessageTooLarge):
        await bus.request(Placed(note="x" * 100), Quoted, timeout=1)
    assert transport.published == []


def test_code_that_is_not_async_requests_too(transport: Recording) -> None:
    async def answer(message: Any, *, timeout: float) -> Message:
        assert (message.type, message.wants, timeout) == ("order.placed", "quote.given", 2)
        return replace(message, type="quote.given", body=b'{"number": 8}')

    transport.request = answer  # type: ignore[method-assign]
    with connect_sync("memory://") as bus:
        assert bus.request(Placed(), Quoted, timeout=2) == Quoted(number=8)
