"""Whatever a stranger sends comes to an outcome: it is handled, waits for a deploy, or is given up with its reason."""

from __future__ import annotations

import asyncio
from typing import get_args

from hypothesis import given, settings

from bus.context import Context
from bus.outcome import Ack, DeadLetter, Reason, Retry
from bus.transport.rabbitmq import envelope
from tests.hostile.messages import Hostile, any_message, content_header
from tests.unit.played import Placed, Played, handling, process


async def work(placed: Placed, context: Context) -> None:
    """Take whatever can be read."""


@given(any_message)
@settings(max_examples=30)
def test_a_strangers_message_comes_to_an_outcome_and_raises_nothing(hostile: Hostile) -> None:
    message = envelope.decode(content_header(hostile), hostile.body, "order.placed", ours=False).message
    delivery = Played()
    delivery.message = message
    outcome = asyncio.run(process(handling(work))(delivery))
    assert delivery.settled == [outcome]
    match outcome:
        case DeadLetter(failure=failure):
            assert failure.reason in get_args(Reason)
        case Retry(waits_since=since):
            assert since is not None
        case _:
            assert isinstance(outcome, Ack)
