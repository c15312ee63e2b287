"""User code that mypy must refuse: each line that ends in `# E: code` with that error, and no other line."""

from uuid import UUID, uuid4

from bus import Data, Event, Message, Service, SqliteStore, SqliteTransaction, connect


class Line(Data):
    sku: str


class Placed(Event, type="order.placed"):
    order_id: UUID
    line: Line


class Reserved(Event, type="stock.reserved"):
    order_id: UUID


service = Service("inventory")


@service.on(Placed)  # E: arg-type
async def wrong_event(event: Reserved) -> None: ...


@service.on(Placed)  # E: type-var
async def wrong_return(event: Placed) -> str:
    return "done"


@service.on(Placed, Reserved)  # E: arg-type
async def half_of_them(event: Placed) -> None: ...


no_such_option = service.on(Placed, retries=3)  # E: call-overload


@service.on("order.#")  # E: arg-type
async def pattern_gives_messages(event: Placed) -> None: ...


@service.on(Placed)
async def fields_are_frozen(event: Placed) -> None:
    event.order_id = uuid4()  # E: misc
    event.line.sku = "tea"  # E: misc


billing = Service("billing", store=SqliteStore("billing.db"))


@billing.on(Placed, idempotent=True)
async def a_transaction_is_ended_by_tidegate(event: Placed, transaction: SqliteTransaction) -> None:
    await transaction.commit()  # E: attr-defined


async def publish(message: Message, line: Line) -> None:
    async with connect() as bus:
        await bus.publish(message)  # E: arg-type
        await bus.publish(Reserved(order_id="no uuid"))  # E: arg-type
        await bus.publish(Placed(order_id=uuid4(), line=line, colour="red"))  # E: call-arg
