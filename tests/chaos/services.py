"""The services under attack. Each writes its effect into the ledger as the last thing that it does."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from contextvars import ContextVar

from bus import (
    Context,
    DeadLetter,
    Delivery,
    Handler,
    Message,
    Outcome,
    Process,
    Reject,
    Service,
    SqliteStore,
    SqliteTransaction,
    fixed,
)

from .events import Doomed, Entry, Flaky, Later, Order, Taken, Task
from .ledger import EFFECTS, STORE, of_this_process


LEDGER = of_this_process()
NUMBERS = itertools.count()
RUN: ContextVar[int] = ContextVar("RUN")
"""The number of the run in this process: two copies of a message may run at once."""

steady = Service("steady")
audit = Service("audit")
flaky = Service("flaky")
account = Service("account")
chain = Service("chain")
later = Service("later")
doomed = Service("doomed")
once = Service("once", store=SqliteStore(os.environ.get(STORE, ":memory:"), schema=EFFECTS))


def recorded(handler: Handler, process: Process) -> Process:
    """Note that a run starts, and that the handler gave up."""

    async def record(delivery: Delivery) -> Outcome:
        RUN.set(next(NUMBERS))
        work = {"handler": handler.subscription_name, "ref": delivery.message.correlation_id}
        LEDGER.write("started", run=RUN.get(), **work, attempt=delivery.attempt, redelivered=delivery.redelivered)
        outcome = await process(delivery)
        if isinstance(outcome, DeadLetter):
            LEDGER.write("gave up", **work)
        return outcome

    return record


def effect(handler: str, message: Message) -> None:
    """Do the one thing of the handler that the world can see."""
    LEDGER.write("finished", run=RUN.get(), handler=handler, ref=message.correlation_id)


async def busy(longest: float = 0.2) -> None:
    """Take a while, so that each fault meets some runs."""
    await asyncio.sleep(random.uniform(0, longest))


@steady.on(Task)
async def work(_: Task, message: Message) -> None:
    """Be busy."""
    await busy()
    effect("steady.work", message)


@audit.on("chaos.task")
def see(message: Message) -> None:
    """Have a copy of one's own, in a thread."""
    effect("audit.see", message)


@flaky.on(Flaky, name="work", retry=fixed(10, 0.5))
async def fail_at_first(event: Flaky, context: Context) -> None:
    """Fail once in a fourth of the cases, three times in a sixteenth."""
    await busy()
    failures = 3 if event.number % 16 == 0 else 1 if event.number % 4 == 0 else 0
    if context.attempt <= failures:
        raise ConnectionError("at first")
    effect("flaky.work", context.message)


@once.on(Task, name="work", idempotent=True)
async def work_once(_: Task, message: Message, transaction: SqliteTransaction) -> None:
    """Have an effect in the store; it is the ledger's before the store's transaction ends."""
    await busy()
    await transaction.execute(
        "INSERT INTO effects VALUES (?, ?)", [message.correlation_id, f"{LEDGER.who}.{RUN.get()}"]
    )
    effect("once.work", message)


@account.on(Entry, retry=fixed(10, 0.1), ordered_by="account")
async def apply(entry: Entry, context: Context) -> None:
    """Hold back what comes after, now and then."""
    await busy(0.05)
    if entry.number % 10 == 0 and context.attempt == 1:
        raise ConnectionError("at first")
    effect("account.apply", context.message)


@chain.on(Order)
async def take(order: Order, message: Message) -> Taken:
    """Publish the follow-up."""
    await busy()
    effect("chain.take", message)
    return Taken(number=order.number)


@chain.on(Taken)
async def finish(_: Taken, message: Message) -> None:
    """Handle the follow-up."""
    await busy()
    effect("chain.finish", message)


@later.on(Later, name="work")
async def work_later(_: Later, message: Message) -> None:
    """Handle what was delayed."""
    effect("later.work", message)


@doomed.on(Doomed, name="work", retry=fixed(2, 0.5))
async def give_up(event: Doomed) -> None:
    """Reject every other one at once."""
    if event.number % 2:
        raise Reject("on purpose")
    raise RuntimeError("on purpose")
