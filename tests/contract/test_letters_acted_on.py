"""F7: what operators do about dead letters, and what is told of it afterwards."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from bus import Context, Letter, Message, Reject, Service, Unroutable, immediate

from .stage import Log, Placed, Stage, staged


HEALTHY = "healthy"


def shop(log: Log[tuple[str, Message, int]] | None = None) -> Service:
    """A shop whose `reserve` gives up on what has no note, and whose `bill` is well."""
    service = Service("shop")

    @service.on(Placed, retry=immediate(1))
    async def reserve(placed: Placed, context: Context) -> None:
        if log is not None:
            log.append(("reserve", context.message, context.attempt))
        if placed.note != HEALTHY:
            raise Reject(f"no {placed.number}")

    @service.on("bill.only")
    async def bill(message: Message, context: Context) -> None:
        if log is not None:
            log.append(("bill", message, context.attempt))

    return service


async def buried(stage: Stage, *numbers: int) -> list[Letter]:
    """Have letters of these numbers, and no worker any more."""
    async with stage.hosting(shop()):
        await stage.bus.publish(*(Placed(number=number) for number in numbers))
        return await stage.letters("shop", len(numbers))


async def listed(stage: Stage, *, closed: bool = False) -> list[Letter]:
    return [letter async for letter in stage.transport.dead_letters.browse("shop", closed=closed)]


async def test_f7_of_several_who_replay_a_letter_one_does(stage: Stage) -> None:
    (letter,) = await buried(stage, 1)
    async with AsyncExitStack() as stack:
        stages = [stage]
        if stage.kind == "rabbitmq":
            url = stage.settings.url
            stages += [await stack.enter_async_context(staged("rabbitmq", url)) for _ in range(3)]
        # all have looked, so that nobody is late
        assert [await listed(each) for each in stages] == [[letter]] * len(stages)
        acts = [each.transport.dead_letters.replay(letter) for each in stages * (4 // len(stages))]
        came = await asyncio.gather(*acts, return_exceptions=True)
    refused = [error for error in came if error is not None]
    assert [type(error) for error in refused] == [LookupError] * 3
    assert all("somebody else" in str(error) or "not open any more" in str(error) for error in refused)
    assert await stage.ready("shop.reserve") == 1
    assert await listed(stage) == []


async def test_f7_what_was_done_about_a_letter_is_told_with_who_and_when(stage: Stage) -> None:
    async with stage.hosting(shop()):
        await stage.bus.publish(Placed(number=1))
        (first,) = await stage.letters("shop")
        assert first.history == ()
        await stage.transport.dead_letters.replay(first)
        async with asyncio.timeout(20):
            while not (found := await listed(stage)):
                await asyncio.sleep(0.02)
    (second,) = found
    await stage.transport.dead_letters.discard(second)
    closed = await listed(stage, closed=True)
    assert [(letter.id, letter.closed, letter.failed_again) for letter in closed] == [
        (first.id, True, 0),
        (second.id, True, 1),
    ]
    told = closed[1].history
    assert [mark.kind for mark in told] == ["failed", "replayed", "failed again", "discarded"]
    assert told[0].at == first.failure.last_failed_at
    assert told[0].operator == first.failure.worker
    assert told[1].operator == told[3].operator != ""
    assert [mark.at for mark in told] == sorted(mark.at for mark in told)
    assert await listed(stage) == []


async def test_f7_a_letter_is_replayed_to_another_handler_and_to_no_other(stage: Stage) -> None:
    (letter,) = await buried(stage, 1)
    with pytest.raises(Unroutable, match=r"shop\.nobody"):
        await stage.transport.dead_letters.replay(letter, to="shop.nobody")
    assert [open_letter.id for open_letter in await listed(stage)] == [letter.id]
    await stage.transport.dead_letters.replay(letter, to="shop.bill")
    log: Log[tuple[str, Message, int]] = Log()
    async with stage.hosting(shop(log)):
        await log.reaches(1)
    assert [(who, message.id, attempt) for who, message, attempt in log] == [("bill", letter.message.id, 1)]
    (closed,) = await listed(stage, closed=True)
    assert [(mark.kind, mark.to) for mark in closed.history][-1] == ("replayed", "shop.bill")


async def test_f7_an_edited_letter_is_another_message_of_the_same_story(stage: Stage) -> None:
    (letter,) = await buried(stage, 1)
    log: Log[tuple[str, Message, int]] = Log()
    sent = await stage.transport.dead_letters.edit(letter, b'{"number": 1, "note": "healthy"}')
    async with stage.hosting(shop(log)):
        await log.reaches(1)
    ((who, message, attempt),) = log
    assert (who, attempt, message.body) == ("reserve", 1, b'{"number": 1, "note": "healthy"}')
    assert message.id == sent.id != letter.message.id
    assert message.causation_id == letter.message.id
    assert (message.type, message.version, message.source, message.correlation_id) == (
        letter.message.type,
        letter.message.version,
        letter.message.source,
        letter.message.correlation_id,
    )
    (closed,) = await listed(stage, closed=True)
    assert (closed.message.body, closed.closed) == (letter.message.body, True)
    assert [(mark.kind, mark.to) for mark in closed.history][-1] == ("edited", sent.id)


async def test_f7_an_edit_that_fails_again_says_so_also_after_a_compaction(stage: Stage) -> None:
    dead = stage.transport.dead_letters
    (letter,) = await buried(stage, 1)
    sent = await dead.edit(letter, b'{"number": 2}')
    async with stage.hosting(shop()):
        (again,) = await stage.letters("shop")
        assert (again.message.id, again.failed_again) == (sent.id, 1)
        await dead.compact("shop")
        await dead.replay(again)
        async with asyncio.timeout(20):
            while not (found := await listed(stage)):
                await asyncio.sleep(0.02)
    assert [letter.failed_again for letter in found] == [2]
    assert [mark.kind for mark in found[0].history if not mark.kind.startswith("failed")] == ["edited", "replayed"]


async def test_f7_the_same_edit_made_twice_is_one_message(stage: Stage) -> None:
    first, second = await buried(stage, 1, 1)
    dead = stage.transport.dead_letters
    one = await dead.edit(first, b'{"number": 2}')
    other = await dead.edit(second, b'{"number": 2}')
    assert one.id != other.id
    await dead.restore("shop", await dead.packed(first))
    (reopened,) = await listed(stage)
    assert (await dead.edit(reopened, b'{"number": 2}')).id == one.id
    await dead.restore("shop", await dead.packed(first))
    (reopened,) = await listed(stage)
    assert (await dead.edit(reopened, b'{"number": 3}')).id != one.id


async def test_f7_a_packed_letter_is_restored_once(stage: Stage) -> None:
    first, second = await buried(stage, 1, 2)
    dead = stage.transport.dead_letters
    packed = json.loads(json.dumps([await dead.packed(letter) for letter in (first, second)]))
    assert [await dead.restore("shop", each) for each in packed] == [False, False]
    await dead.discard(first)
    assert [await dead.restore("shop", each) for each in packed] == [True, False]
    assert [await dead.restore("shop", each) for each in packed] == [False, False]
    restored, untouched = await listed(stage)
    assert (restored.id, restored.message, restored.failure) == (first.id, first.message, first.failure)
    assert untouched == second
    assert [mark.kind for mark in restored.history][-2:] == ["discarded", "restored"]
    await dead.replay(restored)
    assert await stage.ready("shop.reserve") == 1
    # what a compaction has erased comes back from the file too
    await dead.compact("shop")
    assert [await dead.restore("shop", each) for each in packed * 2] == [True, False, False, False]
    assert len(await listed(stage)) == 2


async def test_f7_a_compaction_erases_what_is_closed_and_leaves_the_rest_as_it_was(stage: Stage) -> None:
    letters = await buried(stage, 1, 2, 3, 4)
    dead = stage.transport.dead_letters
    await dead.discard(letters[0])
    await dead.replay(letters[2])
    assert await dead.compact("shop") == (2, 2)
    assert await listed(stage, closed=True) == [letters[1], letters[3]]
    with pytest.raises(LookupError, match=letters[0].id):
        await dead.discard(letters[0])
    await dead.replay(letters[1])
    assert await dead.compact("shop") == (1, 1)
    assert await listed(stage, closed=True) == [letters[3]]
    async with stage.hosting(shop()):
        # both that were replayed fail again
        found = await stage.letters("shop", 3)
    assert [letter.failed_again for letter in found] == [0, 1, 1]
    assert found[0] == letters[3]
    assert len({letter.id for letter in found}) == 3
