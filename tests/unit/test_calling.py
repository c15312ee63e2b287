"""A handler's timeout bounds what is opened and closed for each delivery, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from bus import Event, Service, clock, fixed, immediate
from bus.testing import Tester


class Placed(Event, type="order.placed"):
    number: int = 0


class Session: ...


class Audit: ...


class Hanging:
    """A service whose session hangs as it opens, or closes, while it is told to."""

    def __init__(self, work: Callable[..., Any], *, opening: bool = False, closing: bool = False) -> None:
        self.opening, self.closing = opening, closing
        self.service = Service("shop", concurrency=2)
        self.service.resource(per="delivery")(self.session)
        self.service.resource(per="delivery")(self.audit)
        self.service.on(Placed, name="work", timeout=1, retry=fixed(3, 1))(work)
        self.closed = 0

    async def session(self) -> AsyncIterator[Session]:
        if self.opening:
            await asyncio.sleep(86400)
        try:
            yield Session()
        finally:
            if self.closing:
                await asyncio.sleep(86400)

    async def audit(self) -> AsyncIterator[Audit]:
        try:
            yield Audit()
        finally:
            self.closed += 1


async def awaited(placed: Placed, audit: Audit, session: Session) -> None: ...


def threaded(placed: Placed, audit: Audit, session: Session) -> None: ...


async def slow(placed: Placed, audit: Audit, session: Session) -> None:
    if placed.number < 4:
        await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("work", "hangs", "waited_for"),
    [
        (awaited, "opening", ", waiting for Session to open"),
        (threaded, "opening", ", waiting for Session to open"),
        (awaited, "closing", ", waiting for its resources to close"),
        (threaded, "closing", ", waiting for its resources to close"),
        (slow, "closing", ""),
    ],
)
async def test_a_resource_that_hangs_is_a_failed_run_and_keeps_no_slot(
    work: Callable[..., Any], hangs: str, waited_for: str
) -> None:
    shop = Hanging(work, **{hangs: True})
    async with Tester(shop.service) as bus:
        await bus.publish(*(Placed(number=number) for number in range(4)))
        await bus.settled()
        setattr(shop, hangs, False)
        await bus.publish(Placed(number=99))
        await bus.settled()
        assert [message.body for message in bus.handled(work)][-1:] == [b'{"number":99}']
        errors = [letter.failure.error for letter in bus.dead_letters()]
    assert errors == [f"the handler ran past its timeout of 1 s{waited_for}"] * 4
    assert shop.closed == 4 * 3 + 1


async def test_opening_and_the_call_have_one_timeout_together() -> None:
    service, took = Service("shop"), []

    @service.resource(per="delivery")
    async def session() -> AsyncIterator[Session]:
        began = clock.now()
        await asyncio.sleep(6)
        try:
            yield Session()
        finally:
            took.append((clock.now() - began).total_seconds())

    @service.on(Placed, timeout=10, retry=immediate(1))
    async def work(placed: Placed, session: Session) -> None:
        await asyncio.sleep(6)

    async with Tester(service) as bus:
        await bus.publish(Placed())
        await bus.settled()
        (letter,) = bus.dead_letters()
    assert letter.failure.error == "the handler ran past its timeout of 10 s"
    assert [round(seconds) for seconds in took] == [10]
