"""F4 and F7: what is given up on is kept, and can be replayed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bus import Context, Letter, Message, Reject, Service, Unroutable, fixed, immediate
from bus.message import Outgoing
from tests.broker.fixtures import Shared

from .outages import removed
from .stage import Log, Placed, Shipped, Stage


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even its text fails")


@pytest.mark.parametrize(
    ("error", "reason", "attempts", "kind"),
    [
        (ValueError("no"), "exhausted", 2, "ValueError"),
        (Reject("never"), "rejected", 1, "Reject"),
        (Odd(), "exhausted", 2, "Odd"),
        (SystemExit(3), "exhausted", 2, "SystemExit"),
        (ExceptionGroup("many", [ValueError("one")]), "exhausted", 2, "ExceptionGroup"),
        (asyncio.CancelledError(), "exhausted", 2, "HandlerError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
async def test_f4_what_a_handler_gives_up_on_is_kept_with_its_record(
    stage: Stage, error: BaseException, reason: str, attempts: int, kind: str
) -> None:
    service = Service("failing")

    @service.on(Placed, retry=immediate(2))
    async def fail(placed: Placed) -> None:
        raise error

    async with stage.hosting(service):
        (id,) = await stage.bus.publish(Placed(number=9), headers={"tenant": "blue"})
        (letter,) = await stage.letters("failing")
    failure = letter.failure
    assert (failure.reason, failure.attempts, failure.error_type) == (reason, attempts, kind)
    assert (failure.service, failure.handler, letter.handler) == ("failing", "fail", "fail")
    assert (letter.message.id, letter.message.headers["tenant"]) == (id, "blue")
    assert json.loads(letter.message.body) == {"number": 9, "note": ""}
    assert "Traceback" in failure.traceback or "cannot be had" in failure.traceback
    assert ":" in failure.worker


async def test_f4_what_expired_is_not_run(stage: Stage) -> None:
    ran: Log[int] = Log()
    service = Service("late")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        ran.append(1)

    message = stage.bus.message(Placed())
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = Message(**{name: getattr(message, name) for name in Message.__dataclass_fields__} | {"expires": past})
    async with stage.hosting(service):
        await stage.transport.publish([Outgoing(expired)])
        (letter,) = await stage.letters("late")
    assert (letter.failure.reason, letter.failure.attempts, ran) == ("expired", 0, [])


async def test_c4_an_event_storm_ends(stage: Stage) -> None:
    service = Service("storm")

    @service.on(Placed)
    async def there(placed: Placed) -> Shipped:
        return Shipped(number=placed.number + 1)

    @service.on(Shipped)
    async def back(shipped: Shipped) -> Placed:
        return Placed(number=shipped.number + 1)

    async with stage.hosting(service, max_hops=6):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("storm")
    assert letter.failure.reason == "hops"
    assert letter.message.hops == 7


async def test_f7_a_replay_reaches_only_the_handler_that_gave_up_and_starts_again_at_one(stage: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    healthy = False
    service = Service("shop")

    @service.on(Placed, name="broken", retry=immediate(2))
    async def broken(placed: Placed, context: Context) -> None:
        log.append(("broken", context.attempt))
        if not healthy:
            raise ValueError

    @service.on(Placed, name="fine")
    async def fine(placed: Placed, context: Context) -> None:
        log.append(("fine", context.attempt))

    async with stage.hosting(service):
        await stage.bus.publish(Placed())
        (letter,) = await stage.letters("shop")
        await stage.transport.dead_letters.replay(letter)
        (again,) = await wait_for_another(stage, letter)
        assert (again.failed_again, again.message.id) == (1, letter.message.id)
        healthy = True
        await stage.transport.dead_letters.replay(again)
        await log.reaches(6)
        assert [entry async for entry in stage.transport.dead_letters.browse("shop")] == []
    assert [attempt for who, attempt in log if who == "broken"] == [1, 2, 1, 2, 1]
    assert [attempt for who, attempt in log if who == "fine"] == [1]


async def wait_for_another(stage: Stage, letter: Letter) -> list[Letter]:
    async with asyncio.timeout(20):
        while True:
            found = await stage.letters("shop")
            if found[0].id != letter.id:
                return found


async def test_f7_a_letter_is_replayed_or_discarded_once(stage: Stage) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def reject(placed: Placed) -> None:
        raise Reject("no")

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(3)))
        first, second, third = await stage.letters("shop", 3)
    dead = stage.transport.dead_letters
    await dead.discard(first)
    await dead.replay(second)
    for letter in (first, second):
        for act in (dead.replay, dead.discard):
            with pytest.raises(LookupError, match="not open any more"):
                await act(letter)
    assert [letter.id async for letter in dead.browse("shop")] == [third.id]


async def test_f4_what_expires_in_its_queue_is_kept_with_what_the_broker_tells(rabbitmq: Stage) -> None:
    service = Service("late")

    @service.on("order.placed")
    async def work(message: Message) -> None: ...

    await rabbitmq.declare(service)
    await rabbitmq.raw("order.placed", b"old", {"tenant": "blue"}, expiration=0.05, message_id="m")
    (letter,) = await rabbitmq.letters("late")
    assert (letter.handler, letter.failure.reason, letter.failure.attempts) == ("work", "expired", 0)
    assert "late.work" in letter.failure.error
    assert (letter.message.id, letter.message.body, letter.message.headers["tenant"]) == ("m", b"old", "blue")


async def test_f7_a_replay_of_what_named_no_type_and_expired_in_its_queue_is_handled(rabbitmq: Stage) -> None:
    typed, untyped = Log[int](), Log[str]()
    service = Service("late")

    @service.on(Placed)
    async def work(placed: Placed) -> None:
        typed.append(placed.number)

    @service.on("order.*")
    async def look(message: Message) -> None:
        untyped.append(message.type)

    await rabbitmq.declare(service)
    await rabbitmq.raw("order.placed", b'{"number": 1}', expiration=0.05, message_id="m")
    found = {letter.handler: letter for letter in await rabbitmq.letters("late", 2)}
    assert [letter.message.type for letter in found.values()] == ["", ""]
    dead = rabbitmq.transport.dead_letters
    # the command line knows what the handler subscribes to
    await dead.replay(replace(found["work"], message=replace(found["work"].message, type="order.placed")))
    await dead.replay(found["look"])
    async with rabbitmq.hosting(service):
        await typed.reaches(1)
        await untyped.reaches(1)
    assert (typed, untyped) == ([1], [""])


async def test_f4_a_retry_whose_handler_is_gone_is_kept_and_says_so(rabbitmq: Stage, broker: Shared) -> None:
    begun: Log[int] = Log()
    go = asyncio.Event()
    service = Service("gone")

    @service.on(Placed, retry=fixed(3, 0.2))
    async def work(placed: Placed) -> None:
        begun.append(placed.number)
        await go.wait()
        raise ValueError

    async with rabbitmq.hosting(service) as hosted:
        await rabbitmq.bus.publish(Placed(number=3))
        await begun.reaches(1)
        await removed(rabbitmq, hosted, broker.node, "gone.work", go)
    (letter,) = await rabbitmq.letters("gone")
    assert (letter.handler, letter.failure.reason, letter.failure.attempts) == ("work", "broker", 1)
    assert "removed" in letter.failure.error
    assert json.loads(letter.message.body)["number"] == 3
    with pytest.raises(Unroutable, match=r"gone\.work"):
        await rabbitmq.transport.dead_letters.replay(letter)
    await rabbitmq.declare(service)
    await rabbitmq.transport.dead_letters.replay(letter)


async def test_f7_a_letter_stays_what_it_was_whatever_comes_after_it(stage: Stage) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def reject(placed: Placed) -> None:
        raise Reject("no")

    async with stage.hosting(service):
        await stage.bus.publish(Placed(number=1))
        (first,) = await stage.letters("shop")
        await stage.bus.publish(*(Placed(number=number) for number in range(2, 30)))
        later = await stage.letters("shop", 29)
        await stage.transport.dead_letters.discard(later[-1])
        await stage.transport.dead_letters.replay(later[-2])
        (*left, again) = await stage.letters("shop", 28)
    assert left == later[:-2]
    assert left[0] == first
    assert (again.message.id, again.failed_again) == (later[-2].message.id, 1)


async def test_f7_fifty_looks_change_nothing(stage: Stage) -> None:
    service = Service("shop")

    @service.on(Placed)
    async def reject(placed: Placed) -> None:
        raise Reject("no")

    async with stage.hosting(service):
        await stage.bus.publish(*(Placed(number=number) for number in range(5)))
        before = await stage.letters("shop", 5)
    looks = 50 if stage.kind == "memory" else 10
    for _ in range(looks):
        assert [letter async for letter in stage.transport.dead_letters.browse("shop")] == before
    if stage.kind == "rabbitmq":
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(stage.letters("shop", 5)) for _ in range(40)]
        assert all(task.result() == before for task in found)
