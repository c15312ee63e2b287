"""A delivery that ended, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

from ..message import Message
from ..outcome import DeadLetter, Outcome, Retry
from ..service import Handler


@dataclass(frozen=True, slots=True)
class Run:
    """A delivery that ended: which handler, which message, and what it came to; `known` was completed before."""

    handler: Handler
    message: Message
    attempt: int
    outcome: Outcome
    known: bool = False


def told_of(run: Run) -> str:
    """Return it in a line."""
    name, kind = run.handler.subscription_name, run.message.type
    match run.outcome:
        case Retry(failure=failure, delay=delay):
            told = f"raised {failure.error_type}: {failure.error} (again in {delay.total_seconds():g} s)"
        case DeadLetter(failure=failure):
            told = f"gave up ({failure.reason}): {failure.error_type}: {failure.error}"
        case _ if run.known:
            told = "knows it: completed before, not run"
        case outcome:
            told = {"Ack": "handled it"}.get(type(outcome).__name__, "released it")
    return f"{name} {told}: {kind} {run.message.id[:8]}, attempt {run.attempt}"
