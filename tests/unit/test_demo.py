"""The shop's demo adds up, and sees when something is missing."""

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from bus import Ack, App, Bus, Delivery, Handler, Message, Middleware, Outcome, Process, Settings
from bus.client import transport as open_transport
from bus.message import Outgoing
from bus.transport import Transport
from bus.transport.memory import MemoryTransport
from examples import demo
from examples.shop.stage import orders
from examples.shop.watch import Watch


def shop(*middleware: Middleware) -> App:
    return App("shop", events="events", services="handlers", commands=[demo.demo], middleware=middleware)


HANDLERS = [handler.subscription_name for service in shop().services for handler in service.handlers]


def dropping(name: str) -> Middleware:
    """Ack the first delivery of a handler without running it."""

    def wrap(handler: Handler, process: Process) -> Process:
        left = [name] if handler.subscription_name == name else []

        async def drop(delivery: Delivery) -> Outcome:
            if left:
                left.pop()
                return Ack()
            return await process(delivery)

        return drop

    return wrap


def message(type: str) -> Message:
    return Message(
        id=type, type=type, version=1, source="/test", time=datetime.now(UTC), body=b"", correlation_id="order"
    )


async def tell(watch: Watch, app: App, name: str, message: Message, outcome: Outcome) -> None:
    """Let the watch see that a handler's delivery came to an outcome."""

    async def process(_: Delivery) -> Outcome:
        return outcome

    [handler] = [h for service in app.services for h in service.handlers if h.subscription_name == name]
    transport = MemoryTransport()
    async with transport.consume(handler.subscription(app.events), limit=1) as consumer:
        await transport.publish([Outgoing(message, address=name)])
        await watch.middleware(handler, process)(await anext(consumer))


async def test_what_the_services_have_adds_up_to_the_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert await demo.run(shop(), orders(80, Random(1)), pace=0)
    shown = capsys.readouterr().out
    assert "80/80" in shown
    assert "Everything adds up" in shown
    assert shown.count("undecodable: the body is not a valid order.placed") == 2
    assert "notification.tell_shipped" in shown
    assert "ProviderDown" in shown


async def test_it_adds_up_on_rabbitmq(
    vhost: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUS_URL", vhost)
    assert await demo.run(shop(), orders(80, Random(1)), pace=0)
    shown = capsys.readouterr().out
    assert "Everything adds up" in shown
    assert "BUS_NAMESPACE=demo python app.py dead list" in shown


async def test_what_an_earlier_run_left_at_the_broker_is_not_counted_on_rabbitmq(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_URL", vhost)
    settings = Settings(url=vhost, namespace="demo")
    subscriptions = [handler.subscription(shop().events) for service in shop().services for handler in service.handlers]
    async with open_transport(settings) as transport:
        await transport.declare(subscriptions)
        await Bus(transport, settings, "/earlier").publish(*orders(20, Random(2)))
    assert await demo.run(shop(), orders(20, Random(1)), pace=0)


@pytest.mark.parametrize("name", HANDLERS)
async def test_one_dropped_delivery_does_not_add_up(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not await demo.run(shop(dropping(name)), orders(40, Random(1)), pace=0)
    assert "does not add up: " in capsys.readouterr().out


@pytest.mark.parametrize(("middleware", "code"), [((), 0), ((dropping("shipping.ship_order"),), 1)])
def test_the_command_exits_with_1_on_a_mismatch(
    middleware: tuple[Middleware, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ORDERS", 40)
    monkeypatch.setattr(sys, "argv", ["app.py", "demo"])
    with pytest.raises(SystemExit) as exited:
        shop(*middleware).cli()
    assert exited.value.code == code


def test_without_a_broker_it_exits_as_every_command_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "START", 0.1)
    monkeypatch.setattr(sys, "argv", ["app.py", "demo"])
    monkeypatch.setenv("BUS_URL", "amqp://127.0.0.1:1/")
    with pytest.raises(SystemExit) as exited:
        shop().cli()
    assert exited.value.code == 3
    assert "the broker did not answer within 0.1 s, so nothing was placed" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "own"), [("", "demo"), ("shop", "demo_shop"), ("a" * 60, "demo_" + "a" * 55)])
async def test_it_has_a_namespace_that_no_worker_has(monkeypatch: pytest.MonkeyPatch, given: str, own: str) -> None:
    opened: list[str] = []

    def noted(settings: Settings) -> AbstractAsyncContextManager[Transport]:
        opened.append(settings.namespace)
        return open_transport(settings)

    monkeypatch.setattr(demo, "open_transport", noted)
    monkeypatch.setenv("BUS_NAMESPACE", given)
    assert await demo.run(shop(), orders(1, Random(1)), pace=0)
    assert opened == [own]


def test_app_py_runs_the_demo() -> None:
    root = Path(__file__).parent.parent.parent
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    command = [sys.executable, "app.py", "demo"]
    ran = subprocess.run(command, cwd=root, env=clean, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "200/200" in ran.stdout
    assert "Everything adds up" in ran.stdout


async def test_what_never_comes_is_named_when_patience_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def hanging(handler: Handler, process: Process) -> Process:
        async def hang(delivery: Delivery) -> Outcome:
            await asyncio.Event().wait()
            return await process(delivery)

        return hang if handler.name == "reserve_stock" else process

    assert not await demo.run(shop(hanging), orders(3, Random(1)), pace=0, patience=2)
    assert "after 2 s these deliveries had not come: inventory.reserve_stock (4)" in capsys.readouterr().out


async def test_an_order_ends_after_its_last_delivery_even_if_that_was_told_first() -> None:
    app, ended = shop(), asyncio.Event()
    watch = Watch(app.services, app.events, tell=lambda *_: None, finished=ended.set)
    placed, reserved = message("order.placed"), message("stock.reserved")
    watch.expect("order", placed.id, placed.type)
    await tell(watch, app, "order.note_placed", placed, Ack())
    await tell(watch, app, "payment.charge_order", reserved, Ack())
    assert watch.under_way() == {"inventory.reserve_stock": 1}
    await tell(watch, app, "inventory.reserve_stock", placed, Ack(publish=(Outgoing(reserved),)))
    assert ended.is_set()
    assert watch.done.is_set()
