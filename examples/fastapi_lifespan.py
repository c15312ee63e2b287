"""A web app publishes: it connects in its lifespan, and its routes ask for the bus as they ask for anything else.

    BUS_URL=amqp://guest:guest@localhost/ python examples/fastapi_lifespan.py
    curl -X POST localhost:8000/orders -H 'content-type: application/json' -d '{"sku": "teapot", "quantity": 1}'

A test hands the route a `Tester` instead: `web.dependency_overrides[current_bus] = lambda: bus`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import uuid4

import uvicorn
from fastapi import Depends, FastAPI, Request
from pydantic import Field

from bus import Bus, Data, Event, connect


class Order(Data):
    sku: str
    quantity: Annotated[int, Field(gt=0)]


class OrderPlaced(Event, type="order.placed"):
    order_id: str
    order: Order


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    """Connect before the first request, and disconnect after the last."""
    async with connect(source="/web") as bus:
        web.state.bus = bus
        yield


web = FastAPI(lifespan=lifespan)


def current_bus(request: Request) -> Bus:
    """Return the bus that the lifespan connected."""
    bus: Bus = request.app.state.bus
    return bus


@web.post("/orders", status_code=202)
async def place_order(order: Order, bus: Annotated[Bus, Depends(current_bus)]) -> dict[str, str]:
    """Accept the order; when the client reads its id, the event is stored."""
    order_id = str(uuid4())
    await bus.publish(OrderPlaced(order_id=order_id, order=order), id=order_id)
    return {"order_id": order_id}


if __name__ == "__main__":
    uvicorn.run(web, host="127.0.0.1", port=8000)
