"""What is over the broker's own limit of size is refused, or is a dead letter, and troubles nobody else."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bus import Context, Event, Fate, Message, PublishRefused, Reject, Service, fixed
from bus.errors import MessageTooLarge
from tests.broker.fixtures import RUN, Shared

from .stage import Log, Placed, Stage, staged
from .test_strangers import replaced, send


LIMIT = 8 << 20
"""More than any other test publishes: the broker is everybody's."""
BROKERS = 128 << 20
LIMITED = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."


class Drawn(Event, type="picture.drawn"):
    pixels: str = ""


@pytest_asyncio.fixture
async def limited(vhost: str, broker: Shared) -> AsyncIterator[Stage]:
    """A stage at a broker that takes less than the bus allows, and that holds a message from before."""
    before = "." * LIMIT
    with (Path(os.environ[RUN]) / "largest").open("w") as turn:
        await asyncio.to_thread(fcntl.flock, turn, fcntl.LOCK_EX)
        async with staged("rabbitmq", vhost, max_message_bytes=2 * LIMIT) as stage:
            await stage.declare(picky(Log()))
            await stage.bus.publish(Placed(note=before))
        await asyncio.to_thread(broker.node.ctl, "eval", LIMITED.format(LIMIT))
        try:
            async with staged("rabbitmq", vhost, max_message_bytes=2 * LIMIT) as stage:
                yield stage
        finally:
            await asyncio.to_thread(broker.node.ctl, "eval", LIMITED.format(BROKERS))


def picky(runs: Log[int]) -> Service:
    service = Service("picky")

    @service.on("order.placed")
    async def work(message: Message) -> None:
        runs.append(len(message.body))
        raise Reject("no")

    return service


async def test_f4_a_message_that_the_broker_takes_is_kept_whole_whatever_a_letter_needs(limited: Stage) -> None:
    runs: Log[int] = Log()
    async with limited.hosting(picky(runs)):
        (before,) = await limited.letters("picky")
        with pytest.raises(MessageTooLarge, match=f"the broker's max_message_size is {LIMIT:,}"):
            await limited.transport.dead_letters.replay(before)
        largest = b"%" * LIMIT
        await send(limited, body=largest, message_id=b"odd", type=b"amqp-1.0")
        _, odd = await limited.letters("picky", 2)
        await limited.transport.dead_letters.replay(odd)
        again = await replaced(limited, odd)
    assert len(before.message.body) > LIMIT
    assert "too large" in before.failure.error
    assert (odd.message.id, odd.message.body, odd.failure.reason) == ("odd", largest, "rejected")
    assert (again.message.id, again.message.body, again.failed_again) == ("odd", largest, 1)
    assert runs == [len(before.message.body), LIMIT, LIMIT]


async def test_p1_what_is_over_the_limit_is_refused_at_once_and_from_a_handler_is_its_failure(limited: Stage) -> None:
    attempts: Log[int] = Log()
    painter = Service("painter")

    @painter.on("paint", retry=fixed(2, 0.1))
    async def paint(message: Message, context: Context) -> Drawn:
        attempts.append(context.attempt)
        return Drawn(pixels="." * LIMIT)

    large = Drawn(pixels="." * LIMIT)
    async with limited.hosting(painter):
        with pytest.raises(PublishRefused, match=f"the broker's max_message_size is {LIMIT:,}") as raised:
            await limited.bus.publish(large, Placed())
        assert isinstance(raised.value, MessageTooLarge)
        assert [*raised.value.fates.values()] == [Fate.REFUSED, Fate.STORED]
        await send(limited, key="paint")
        (letter,) = await limited.letters("painter")
    assert attempts == [1, 2]
    assert (letter.failure.reason, letter.failure.error_type) == ("exhausted", "TooLarge")
