"""User code that both type checkers accept, in their strict modes. It is checked, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type
from uuid import UUID, uuid4

from pydantic import AwareDatetime, Field

from bus import (
    App,
    Bus,
    Context,
    Data,
    Delivery,
    Event,
    Handler,
    Message,
    Outcome,
    Process,
    Queue,
    Reject,
    RetryAfter,
    Service,
    SqliteStore,
    SqliteTransaction,
    Store,
    breaker,
    connect,
    connect_sync,
    exponential,
    fixed,
    immediate,
)
from bus.testing import Tester, context


class Line(Data):
    sku: str
    quantity: Annotated[int, Field(gt=0)]


class Placed(Event, type="order.placed", version=2):
    order_id: UUID
    lines: tuple[Line, ...]
    placed_at: AwareDatetime
    type: str = "web"
    version: int | None = None


class Reserved(Event, type="stock.reserved"):
    order_id: UUID


class Rejected(Event, type="stock.rejected"):
    order_id: UUID
    missing: tuple[str, ...] = ()


class Pool:
    async def reserve(self, order_id: UUID) -> bool:
        return bool(order_id)


class Session:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool


@Placed.upcast(1)
def split_lines(data: dict[str, object]) -> dict[str, object]:
    return {**data, "lines": [{"sku": data.pop("sku"), "quantity": 1}]}


inventory = Service("inventory", concurrency=32)


@inventory.resource
async def pool() -> AsyncIterator[Pool]:
    yield Pool()


@inventory.resource(per="delivery")
async def session(pool: Pool) -> AsyncIterator[Session]:
    yield Session(pool)


@inventory.on(Placed, retry=exponential(attempts=6, first=0.2, limit=60).give_up_on(KeyError), timeout=10)
async def reserve_stock(order: Placed, context: Context, session: Session) -> Reserved | Rejected:
    if context.attempt > 2:
        raise Reject("twice is enough")
    if await session.pool.reserve(order.order_id):
        return Reserved(order_id=order.order_id)
    return Rejected(order_id=order.order_id, missing=("teapot",))


@inventory.on(Reserved, Rejected, retry=fixed(3, timedelta(seconds=1)).retry_on(OSError))
async def note_either(event: Reserved | Rejected) -> None:
    if isinstance(event, Rejected):
        raise RetryAfter(37)


@inventory.on(Placed, Reserved, Rejected)
async def note_all(event: Event) -> None: ...


@inventory.on(Placed, retry=immediate(2))
def in_a_thread(order: Placed) -> list[Reserved]:
    return [Reserved(order_id=order.order_id)]


@inventory.on(Placed)
async def several(order: Placed, context: Context) -> Sequence[Event] | None:
    ids = context.publish(Reserved(order_id=order.order_id), delay=timedelta(hours=1))
    assert_type(ids, list[str])
    return None


@inventory.on(Placed, Reserved, ordered_by="order_id", ordered_window=100)
async def in_order(event: Placed | Reserved) -> None: ...


@inventory.on("order.#", "stock.*")
async def audit(message: Message) -> None:
    assert_type(message.body, bytes)


@inventory.on(Queue("inventory_updates"))
async def foreign(message: Message) -> None: ...


def counting(handler: Handler, process: Process) -> Process:
    async def count(delivery: Delivery) -> Outcome:
        return await process(delivery)

    return count


guarded = Service("guarded", middleware=[breaker(failures=3, within=timedelta(minutes=1), cool_down=30), counting])


@guarded.on(Placed, rate="100/s")
async def paced(order: Placed) -> None: ...


app = App("shop", events="events", services="handlers", middleware=[counting, breaker()])


async def publish(order: Placed) -> None:
    async with connect() as bus:
        assert_type(bus, Bus)
        assert_type(await bus.publish(order, order), list[str])
        await bus.publish(order, id="once", delay=timedelta(hours=24), headers={"tenant": "a"})
        assert_type(await bus.request(order, Reserved, timeout=timedelta(seconds=2)), Reserved)
        assert_type(bus.dropped_replies, int)
    with connect_sync("amqp://localhost/") as sync:
        sync.publish(order, at=datetime.now(UTC) + timedelta(days=1), required=True)
        assert_type(sync.request(order, Reserved, timeout=2), Reserved)


store: Store = SqliteStore("billing.db", keep=timedelta(days=30), schema="CREATE TABLE IF NOT EXISTS stock (sku)")
billing = Service("billing", store=store)


@billing.on(Placed, idempotent=True, retry=fixed(3, 1))
async def charge(placed: Placed, transaction: SqliteTransaction) -> Reserved:
    rows = await transaction.execute("SELECT sku FROM stock WHERE sku = :sku", {"sku": placed.lines[0].sku})
    assert_type(rows, list[tuple[Any, ...]])
    return Reserved(order_id=placed.order_id) if rows else Reserved(order_id=UUID(int=0))


async def call_directly() -> None:
    placed = Placed(order_id=uuid4(), lines=(Line(sku="tea", quantity=1),), placed_at=datetime.now(UTC))
    # a decorated handler is still the function that it was
    assert_type(in_a_thread(placed), list[Reserved])
    assert_type(await note_all(placed), None)


async def test_on_the_bus() -> None:
    async with Tester(inventory, resources={Pool: Pool()}, middleware=[counting]) as bus:
        bus.pause("inventory.audit")
        bus.resume("inventory")
        await bus.publish(Reserved(order_id=uuid4()), delay=60)
        await bus.advance(timedelta(minutes=1))
        await bus.settled(within=1)
        assert_type(bus.published(Reserved), list[Reserved])
        assert_type(await bus.request(Reserved(order_id=uuid4()), Rejected, timeout=2), Rejected)
        assert_type(bus.handled(reserve_stock), list[Message])
        assert_type([letter.failure.error for letter in bus.dead_letters()], list[str])


async def test_alone(order: Placed) -> None:
    told = context(attempt=2)
    assert_type(await reserve_stock(order, told, Session(Pool())), Reserved | Rejected)
    assert_type(told.published, list[Event])
