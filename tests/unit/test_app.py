"""App: settings, transport and services become a worker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from bus import App, Bus, ConfigurationError, Delivery, Handler, Outcome, Process, Settings, client
from bus.transport.memory import MemoryTransport
from tests.contract.stage import Log

from .packages import Written


FACTS = """
    from bus import Event
    class Placed(Event, type="order.placed"):
        number: int = 0
    class Paid(Event, type="order.paid"): ...
"""
SERVICES = """
    from bus import Context, Service
    from facts import Placed, Paid
    SEEN = []
    order = Service("order")
    payment = Service("payment")

    @order.on(Placed)
    async def pay(placed: Placed) -> Paid:
        SEEN.append(placed.number)
        return Paid()

    @payment.on(Paid)
    async def note(paid: Paid, context: Context) -> None:
        SEEN.append(context.message.source)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    packages = Written(tmp_path, monkeypatch)
    packages.write(facts__=FACTS, hosted__=SERVICES)
    yield packages
    packages.forget()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Let every app of the test use one memory bus; returns the settings that it was opened with."""
    opened: list[Settings] = []
    transport = MemoryTransport()

    @asynccontextmanager
    async def open(settings: Settings) -> AsyncIterator[MemoryTransport]:
        opened.append(settings)
        yield transport

    monkeypatch.setattr(client, "transport", open)
    return opened


def app(**options: Any) -> App:
    return App("shop", events="facts", services="hosted", **options)


def watching(log: Log[str]) -> Any:
    def watch(handler: Handler, process: Process) -> Process:
        async def watched(delivery: Delivery) -> Outcome:
            outcome = await process(delivery)
            log.append(handler.subscription_name)
            return outcome

        return watched

    return watch


@pytest.mark.parametrize("name", ["", "Shop", "a-b", "events"])
def test_an_app_has_a_name_that_a_source_can_have(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"app '{name}'"):
        App(name, events="facts", services="hosted")


def test_nothing_is_imported_before_it_is_needed() -> None:
    declared = App("shop", events="nowhere", services="nowhere")
    with pytest.raises(ConfigurationError, match="services='nowhere'"):
        _ = declared.services
    with pytest.raises(ConfigurationError, match="nowhere"):
        _ = declared.events


def test_services_and_events_are_found_once(written: Written) -> None:
    declared = app()
    assert [service.name for service in declared.services] == ["order", "payment"]
    assert declared.services is declared.services
    assert sorted(cls.__name__ for cls in declared.events) == ["Paid", "Placed"]
    assert declared.events is declared.events


def test_services_that_do_not_fit_together_are_told_when_they_are_found(written: Written) -> None:
    written.write(hosted__again="from bus import Service\norder = Service('order')")
    with pytest.raises(ConfigurationError, match="two services have the name 'order'"):
        _ = app().services


def test_services_are_chosen_by_name(written: Written) -> None:
    declared = app()
    assert [service.name for service in declared.chosen("payment")] == ["payment"]
    assert [service.name for service in declared.chosen("payment", "order")] == ["payment", "order"]
    assert [service.name for service in declared.chosen("payment", "order", "payment")] == ["payment", "order"]
    assert declared.chosen() == declared.services
    with pytest.raises(ConfigurationError, match="there is no service 'paiment'; there are order, payment"):
        declared.chosen("order", "paiment")


async def test_a_worker_without_any_handler_says_so_before_anything_is_opened(
    written: Written, shared: list[Settings]
) -> None:
    written.write(hosted__later="from bus import Service\npending, idle = Service('pending'), Service('idle')")
    declared = app()
    assert [service.name for service in declared.chosen("pending", "order")] == ["pending", "order"]
    with pytest.raises(ConfigurationError, match=r"nothing to host: idle, pending .* `@idle\.on\(…\)` .* 'hosted'"):
        await declared.run("idle", "pending", settings=Settings())
    assert shared == []


async def test_an_app_is_the_worker_of_its_services_until_it_is_told_to_stop(
    written: Written, shared: list[Settings]
) -> None:
    log: Log[str] = Log()
    declared, stop = app(middleware=[watching(log)]), asyncio.Event()
    placed = declared.events.get("order.placed")
    assert placed is not None
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(declared.run(stop=stop, settings=Settings()))
        async with declared.connect(Settings(url="memory://")) as bus:
            while not transport_of(bus).queues:
                await asyncio.sleep(0)
            await bus.publish(placed(number=7))
            await log.reaches(2)
        assert not running.done()
        stop.set()
    assert log == ["order.pay", "payment.note"]
    assert declared.services[0].handlers[0].function.__globals__["SEEN"] == [7, "/shop/order"]
    assert [settings.url for settings in shared] == ["memory://", "memory://"]


def transport_of(bus: Bus) -> MemoryTransport:
    transport = bus._transport
    assert isinstance(transport, MemoryTransport)
    return transport


async def test_a_part_of_the_services_is_hosted_alone(written: Written, shared: list[Settings]) -> None:
    declared, stop = app(), asyncio.Event()
    async with declared.connect(Settings(url="memory://")) as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(declared.run("payment", stop=stop, settings=Settings(url="memory://")))
        while not transport_of(bus).queues:
            await asyncio.sleep(0)
        stop.set()
    assert list(transport_of(bus).queues) == ["payment.note"]


async def test_a_service_that_is_not_there_is_told_before_anything_is_opened(
    written: Written, shared: list[Settings]
) -> None:
    with pytest.raises(ConfigurationError, match="'nobody'"):
        await app().run("nobody", settings=Settings())
    assert shared == []


async def test_the_environment_decides_where_nothing_else_is_said(
    written: Written, shared: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_URL", "amqp://somewhere/")
    monkeypatch.setenv("BUS_GRACE", "3")
    stop = asyncio.Event()
    stop.set()
    await app().run(stop=stop)
    ((settings),) = shared
    assert (settings.url, settings.grace) == ("amqp://somewhere/", 3.0)
    monkeypatch.setenv("BUS_GRACE", "soon")
    with pytest.raises(ConfigurationError, match="BUS_GRACE='soon'"):
        await app().run(stop=stop)


async def test_a_setting_that_is_none_is_warned_of(
    written: Written, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BUS_GRACES", "3")
    for settings, told in ((Settings(), 0), (None, 1)):
        with pytest.raises(ConfigurationError, match="there is no service 'nobody'"):
            await app().run("nobody", settings=settings)
        assert caplog.text.count("BUS_GRACES is no setting of Tidegate; did you mean BUS_GRACE?") == told


async def test_a_cancelled_app_ends_at_once(written: Written, shared: list[Settings]) -> None:
    task = asyncio.ensure_future(app().run(settings=Settings()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_connects_as_the_app_says_so(written: Written, shared: list[Settings]) -> None:
    declared = app()
    placed = declared.events.get("order.placed")
    assert placed is not None
    async with declared.connect(Settings(url="memory://")) as bus:
        assert bus.message(placed()).source == "/shop"


async def test_what_is_provided_and_who_is_told_instead_reach_the_worker(written: Written) -> None:
    written.write(
        hosted__="""
        from collections.abc import AsyncIterator
        from bus import Service
        from facts import Placed
        class Pool: ...
        SEEN = []
        shop = Service("shop")

        @shop.resource
        async def pool() -> AsyncIterator[Pool]:
            raise AssertionError("it is not opened")
            yield Pool()

        @shop.on(Placed)
        async def work(placed: Placed, pool: Pool) -> None:
            SEEN.append(pool)
        """
    )
    log: Log[str] = Log()
    declared, transport, stop = app(), MemoryTransport(), asyncio.Event()
    here = declared.services[0].handlers[0].function.__globals__
    mine = here["Pool"]()
    worker = declared.worker(transport, declared.services, Settings(), provided={here["Pool"]: mine}, log=watching(log))
    placed = declared.events.get("order.placed")
    assert placed is not None
    async with asyncio.TaskGroup() as tasks:
        started = asyncio.Event()
        tasks.create_task(worker.run(stop, started.set))
        await started.wait()
        await Bus(transport, Settings(), "/test").publish(placed())
        await log.reaches(1)
        stop.set()
    assert here["SEEN"] == [mine]


@pytest.mark.parametrize(
    ("store", "url", "warned"),
    [('":memory:"', "amqp://a/", True), ('":memory:"', "memory://", False), ('"a.db"', "amqp://a/", False)],
)
def test_a_store_that_ends_with_the_process_is_warned_of_on_a_broker(
    written: Written, store: str, url: str, *, warned: bool
) -> None:
    written.write(hosted__=f"from bus import Service, SqliteStore\nshop = Service('shop', store=SqliteStore({store}))")
    declared = app()
    with structlog.testing.capture_logs() as logs:
        declared.worker(MemoryTransport(), declared.services, Settings(url=url))
    assert [(line["log_level"], line["services"]) for line in logs] == [("warning", ["shop"])] * warned


async def test_run_serves_health_where_the_settings_say_so(written: Written) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        http = f"127.0.0.1:{probe.getsockname()[1]}"
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=f"http://{http}") as client:
        tasks.create_task(app().run(stop=stop, settings=Settings(url="memory://", http=http)))
        async with asyncio.timeout(20):
            while not (told := await ready(client)):
                await asyncio.sleep(0.01)
        stop.set()
    assert told == {"order.pay": {"state": "consuming"}, "payment.note": {"state": "consuming"}}


async def ready(client: httpx.AsyncClient) -> Any:
    """Return the states of the handlers once the worker is ready."""
    try:
        answer = await client.get("/readyz")
    except httpx.ConnectError:
        return None
    return answer.json()["handlers"] if answer.status_code == 200 else None
