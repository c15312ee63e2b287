"""The simulator: it finds what is wrong, says it in few words, and finds nothing where nothing is wrong."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import get_args
from uuid import UUID

import pytest

from bus import ConfigurationError, Context, Event, Message, Service, fixed
from bus.outcome import Ack, Outcome
from bus.testing import SimulationFailed, Tester, simulate
from bus.testing.faults import Fault, Kind
from bus.testing.fragile import FragileDelivery
from bus.testing.simulation import _run
from bus.transport.memory import MemoryConsumer, MemoryDelivery
from events.order import OrderLine, OrderPlaced
from events.payment import PaymentRefunded, PaymentRefused
from handlers.inventory import Article, Warehouse, inventory, reserve_stock, warehouse
from handlers.notification import Mailbox, notification
from handlers.order import OrderBook, State, order
from handlers.payment import PaymentProvider, payment
from handlers.shipping import Carrier, shipping


class Counted(Event, type="order.placed"):
    number: int


class Tally(list[int]):
    pass


def counting(*, once: bool = True) -> Callable[[], Tester]:
    """Return what builds a service that adds up numbers; once each, or as often as they come."""
    service = Service("counting")

    @service.on(Counted, retry=fixed(10, 1))
    async def add(counted: Counted, tally: Tally) -> None:
        if not once or counted.number not in tally:
            tally.append(counted.number)

    return lambda: Tester(service, resources={Tally: Tally()})


async def three(bus: Tester) -> None:
    await bus.publish(*(Counted(number=number) for number in range(3)))
    await bus.settled()
    assert sorted(bus.resources[Tally]) == [0, 1, 2]


def test_what_is_idempotent_passes_and_what_is_not_fails_with_the_fault_that_shows_it() -> None:
    simulate(counting(), three, seeds=range(100))
    with pytest.raises(SimulationFailed) as failed:
        simulate(counting(once=False), three, seeds=range(100))
    told = str(failed.value)
    seed, *_, again = told.splitlines()
    assert "AssertionError: assert [0," in seed
    assert re.search(r"\n  tests\S+test_simulation\.py:\d+, in three: assert sorted\(.*\n", told)
    assert "\n  At index " in told, "the whole of the assertion is told"
    assert re.search(r"\nthe faults that it takes: [^;\n]+\n", told), "one fault is enough to run it twice"
    assert re.search(r"\n  [! ]   +0\.\d{3} s  counting\.add handled it: order\.placed", told)
    assert re.fullmatch(r"to repeat it: simulate\(build, three, seed=\d+\)", again)


def test_a_seed_is_repeated_exactly() -> None:
    told = []
    for _ in range(2):
        with pytest.raises(SimulationFailed) as failed:
            simulate(counting(once=False), three, seeds=range(100))
        told.append(str(failed.value))
    seed = int(told[0].split(":")[0].removeprefix("seed="))
    with pytest.raises(SimulationFailed) as failed:
        simulate(counting(once=False), three, seed=seed)
    assert told == [str(failed.value)] * 2


def test_no_code_of_a_crashed_worker_runs_again_not_even_a_finally() -> None:
    service, left = Service("counting"), []
    seen: list[list[int]] = []

    @service.on(Counted, timeout=60)
    async def add(counted: Counted, tally: Tally, context: Context) -> None:
        try:
            await asyncio.sleep(1)
            tally.append(counted.number)
        finally:
            left.append(counted.number)

    async def one(bus: Tester) -> None:
        await bus.publish(Counted(number=7))
        await bus.settled()
        seen.append([*left])  # inside of the block: as it ends, what is left of the dead worker is closed

    def build() -> Tester:
        left.clear()
        return Tester(service, resources={Tally: Tally()})

    steps = _run(build, one, 0, ()).counts["step"]
    cut_off = 0
    for at in range(1, steps + 1):
        ran = _run(build, one, 0, [Fault("crash", at)])
        assert ran.error is None
        story = "\n".join(ran.story.lines())
        was_running = "while it ran counting.add" in story
        ended = 1 if was_running else story.count("handled it")
        assert seen.pop() == [7] * ended, "it left where it ended, and nowhere else"
        cut_off += was_running
    assert cut_off > 1


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_of_fault_happens_and_is_told(kind: Kind) -> None:
    at = 4 if kind in ("crash", "stop", "connection lost", "outage", "clock jump", "slow") else 1
    ran = _run(counting(), three, 0, [Fault(kind, at, 1)])
    assert ran.error is None
    (told,) = [line for line in ran.story if not line.startswith(("published", "counting."))]
    assert told.startswith(TOLD[kind])


TOLD: dict[Kind, str] = {
    "crash": "the worker crashes, and is down for 1 s",
    "stop": "the worker stops, and is down for 1 s",
    "connection lost": "the connection is lost",
    "outage": "the broker is down for 1 s",
    "clock jump": "the wall clock jumps by 1 s",
    "slow": "a step takes 1 s",
    "duplicate": "twice, after 1 s: order.placed for counting.add",
    "late": "late by 1 s: order.placed for counting.add",
    "refused": "publish refused: order.placed",
    "unsure": "stored, but the publish raised: order.placed",
}


@pytest.mark.parametrize("spans", [(20, 1), (1, 20)])
def test_a_long_outage_is_not_ended_by_a_short_one_within_it(spans: tuple[float, float]) -> None:
    async def timed(bus: Tester) -> None:
        began = asyncio.get_running_loop().time()
        await three(bus)
        assert asyncio.get_running_loop().time() - began >= 20

    ran = _run(counting(), timed, 0, [Fault("outage", 4, span) for span in spans])
    assert ran.error is None
    assert sum(line.startswith("the broker is down") for line in ran.story) == 2


def test_subscriptions_get_the_same_events_in_another_order_by_the_seed() -> None:
    service, seen = Service("two"), set()

    @service.on("order.placed")
    async def one(message: Message, orders: Tally) -> None:
        orders.append(1)

    @service.on("order.placed")
    async def other(message: Message, orders: Tally) -> None:
        orders.append(2)

    async def look(bus: Tester) -> None:
        await bus.publish(Counted(number=1))
        await bus.settled()
        seen.add(tuple(bus.resources[Tally]))

    for seed in range(60):
        assert _run(lambda: Tester(service, resources={Tally: Tally()}), look, seed, ()).error is None
    assert seen == {(1, 2), (2, 1)}


def test_a_build_that_returns_something_else_is_told() -> None:
    with pytest.raises(ConfigurationError, match="build returned None; it must return a Tester"):
        simulate(lambda: None, three)  # type: ignore[arg-type,return-value]


# the shop

ORDERS = {UUID(int=number): customer for number, customer in enumerate(("ada", "poor", "far", "bob"))}


BY_FAULTS = "the faults that it takes: [a-z]+ at "


def shop(provider: type[PaymentProvider] = PaymentProvider, inventory: Service = inventory) -> Tester:
    """Return the shop with two cups for each of two customers, and one cup too few for the third that could pay."""
    return Tester(
        *(inventory, payment, order, shipping, notification),
        resources={
            Warehouse: Warehouse({"cup": Article(stock=5, price=100)}),
            PaymentProvider: provider(Random(3), expired_cards={"poor"}),
            OrderBook: OrderBook(),
            Carrier: Carrier(unserved={"far"}),
            Mailbox: Mailbox(),
        },
    )


async def every_order_ends_well(bus: Tester) -> None:
    """Every order is shipped, refunded or rejected, and never two of these; and the books agree."""
    for order_id, customer in ORDERS.items():
        lines = (OrderLine(sku="cup", quantity=2),)
        placed = OrderPlaced(
            order_id=order_id, customer_id=customer, lines=lines, placed_at=datetime(2026, 1, 1, tzinfo=UTC)
        )
        await bus.publish(placed)
    await bus.settled(within=60)
    assert bus.dead_letters() == []
    book, provider = bus.resources[OrderBook], bus.resources[PaymentProvider]
    parcels, warehouse = bus.resources[Carrier].parcels, bus.resources[Warehouse]
    for order_id in ORDERS:
        assert book.state(order_id) in (State.SHIPPED, State.REFUNDED, State.REJECTED)
        assert (book.state(order_id) is State.SHIPPED) == (order_id in parcels)
        assert (order_id in provider.charged) == (order_id in parcels or order_id in provider.refunded)
        assert order_id not in parcels or order_id not in provider.refunded
    assert all(amount == provider.charged[order_id] for order_id, amount in provider.refunded.items())
    assert warehouse.left["cup"] + 2 * len(parcels) == 5


@pytest.mark.parametrize("start", range(0, 2000, 250))
def test_the_shop_keeps_its_books_whatever_happens(start: int) -> None:
    simulate(shop, every_order_ends_well, seeds=range(start, start + 250))


def test_a_refund_that_is_not_idempotent_is_found() -> None:
    class Generous(PaymentProvider):
        async def refund(self, order_id: UUID) -> int:
            before = self.refunded.get(order_id, 0)
            amount = await super().refund(order_id)
            self.refunded[order_id] = before + amount
            return amount

    with pytest.raises(SimulationFailed, match=r"payment\.refund_order handled it"):
        simulate(lambda: shop(Generous), every_order_ends_well, seeds=range(200))


def test_an_ack_before_the_publish_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(self: FragileDelivery, outcome: Outcome) -> None:
        published = outcome.publish if isinstance(outcome, Ack) else ()
        await MemoryDelivery.settle(self, Ack() if published else outcome)
        if published:
            await self._fragile.store(published)

    monkeypatch.setattr(FragileDelivery, "settle", settle)
    with pytest.raises(SimulationFailed, match=BY_FAULTS):
        simulate(shop, every_order_ends_well, seeds=range(200))


def test_a_release_that_is_lost_is_found() -> None:
    hasty = Service("inventory")
    hasty.resource(warehouse)
    hasty.on(OrderPlaced)(reserve_stock)

    @hasty.on(PaymentRefused, PaymentRefunded)
    async def release_stock(unpaid: PaymentRefused | PaymentRefunded, warehouse: Warehouse) -> None:
        lines = warehouse.reserved.pop(unpaid.order_id, Counter[str]())
        await asyncio.sleep(0)
        warehouse.left += lines

    with pytest.raises(SimulationFailed, match=BY_FAULTS):
        simulate(lambda: shop(inventory=hasty), every_order_ends_well, seeds=range(200))


def test_what_a_worker_does_not_give_back_as_it_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: MemoryConsumer) -> None:
        self._cut = True
        self._queue.consumers.remove(self)
        self._unsettled.clear()

    monkeypatch.setattr(MemoryConsumer, "leave", forget)
    with pytest.raises(SimulationFailed, match=BY_FAULTS):
        simulate(shop, every_order_ends_well, seeds=range(200))
