"""The inventory sets stock aside, all or none, and gives it back."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from bus.testing import Tester
from events.inventory import StockRejected, StockReserved
from events.order import OrderLine, OrderPlaced
from events.payment import PaymentRefunded, PaymentRefused
from handlers.inventory import Article, Warehouse, inventory, reserve_stock


def order(order_id: UUID, **lines: int) -> OrderPlaced:
    return OrderPlaced(
        order_id=order_id,
        customer_id="ada",
        lines=tuple(OrderLine(sku=sku, quantity=quantity) for sku, quantity in lines.items()),
        placed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
def warehouse() -> Warehouse:
    return Warehouse({"teapot": Article(stock=2, price=2500), "cup": Article(stock=4, price=700)})


@pytest.fixture
def order_id() -> UUID:
    return uuid4()


async def test_every_line_is_set_aside_and_priced(warehouse: Warehouse, order_id: UUID) -> None:
    async with Tester(inventory, resources={Warehouse: warehouse}) as bus:
        await bus.publish(order(order_id, teapot=1, cup=2))
        await bus.settled()
        assert bus.published(StockReserved) == [StockReserved(order_id=order_id, customer_id="ada", amount=3900)]
        assert warehouse.left == {"teapot": 1, "cup": 2}


async def test_an_order_that_cannot_be_met_takes_nothing(warehouse: Warehouse, order_id: UUID) -> None:
    async with Tester(inventory, resources={Warehouse: warehouse}) as bus:
        await bus.publish(order(order_id, cup=1, teapot=3, kettle=1))
        await bus.settled()
        rejected = StockRejected(order_id=order_id, customer_id="ada", missing=("teapot", "kettle"))
        assert bus.published(StockRejected) == [rejected]
        assert warehouse.left == {"teapot": 2, "cup": 4}


async def test_two_lines_of_one_article_count_together(warehouse: Warehouse, order_id: UUID) -> None:
    lines = (OrderLine(sku="teapot", quantity=1), OrderLine(sku="teapot", quantity=2))
    both = order(order_id, teapot=1).model_copy(update={"lines": lines})
    assert isinstance(await reserve_stock(both, warehouse), StockRejected)


async def test_an_order_that_comes_twice_is_reserved_once(warehouse: Warehouse, order_id: UUID) -> None:
    first = await reserve_stock(order(order_id, teapot=2), warehouse)
    assert await reserve_stock(order(order_id, teapot=2), warehouse) == first
    assert warehouse.left["teapot"] == 0


async def test_an_order_that_was_rejected_stays_rejected(warehouse: Warehouse, order_id: UUID) -> None:
    other = uuid4()
    await reserve_stock(order(other, teapot=2), warehouse)
    rejected = await reserve_stock(order(order_id, teapot=1), warehouse)
    warehouse.release(other)
    assert await reserve_stock(order(order_id, teapot=1), warehouse) == rejected


@pytest.mark.parametrize("ends", ["refused", "refunded"])
async def test_what_nobody_pays_for_is_released_once(warehouse: Warehouse, order_id: UUID, ends: str) -> None:
    unpaid = (
        PaymentRefused(order_id=order_id, customer_id="ada", reason="expired")
        if ends == "refused"
        else PaymentRefunded(order_id=order_id, customer_id="ada", amount=2500)
    )
    async with Tester(inventory, resources={Warehouse: warehouse}) as bus:
        await bus.publish(order(order_id, teapot=1))
        await bus.settled()
        await bus.publish(unpaid)
        await bus.publish(unpaid)
        await bus.settled()
    assert warehouse.left == {"teapot": 2, "cup": 4}
    assert warehouse.reserved == {}
