"""The shop's demo adds up, and sees when something is missing."""

import asyncio
from random import Random

import pytest

from bus import Ack, App, Delivery, Handler, Middleware, Outcome, Process
from examples import demo
from examples.shop.stage import orders


def shop(*middleware: Middleware) -> App:
    return App("shop", events="events", services="handlers", middleware=middleware)


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


async def test_what_the_services_have_adds_up_to_the_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert await demo.run(shop(), orders(80, Random(1)), pace=0)
    shown = capsys.readouterr().out
    assert "80/80" in shown
    assert "Everything adds up" in shown
    assert shown.count("undecodable: the body is not a valid order.placed") == 2
    assert "notification.tell_shipped" in shown
    assert "ProviderDown" in shown


@pytest.mark.parametrize("name", HANDLERS)
async def test_one_dropped_delivery_does_not_add_up(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not await demo.run(shop(dropping(name)), orders(40, Random(1)), pace=0)
    assert "does not add up: " in capsys.readouterr().out


def test_a_mismatch_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ORDERS", 40)
    with pytest.raises(SystemExit) as exited:
        demo.demo(shop(dropping("shipping.ship_order")))
    assert exited.value.code == 1


async def test_what_never_comes_is_named_when_patience_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def hanging(handler: Handler, process: Process) -> Process:
        async def hang(delivery: Delivery) -> Outcome:
            await asyncio.Event().wait()
            return await process(delivery)

        return hang if handler.name == "reserve_stock" else process

    assert not await demo.run(shop(hanging), orders(3, Random(1)), pace=0, patience=0.5)
    assert "after 0.5 s these deliveries had not come: inventory.reserve_stock (4)" in capsys.readouterr().out
