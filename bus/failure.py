"""What a handler's exception becomes: the failure record, and the judgement of the policy."""

from __future__ import annotations

import os
import platform
import traceback
from datetime import timedelta
from random import Random
from typing import Literal

from . import clock
from .errors import Reject, RetryAfter
from .outcome import DeadLetter, Failure, Outcome, Reason, Retry
from .service import Handler
from .transport import Delivery


LONGEST_ERROR = 2_000
"""Characters of an exception's text that a record keeps."""
LONGEST_TRACEBACK = 16_000
"""Characters of a traceback that a record keeps: its end, where the cause is."""


def worker_name() -> str:
    """Return `host:pid`, which tells an operator where it failed."""
    return f"{platform.node()}:{os.getpid()}"


def judge(handler: Handler, delivery: Delivery, error: BaseException, random: Random) -> Outcome:
    """Return what a run that raised comes to: another attempt by the handler's policy, or a dead letter."""
    if isinstance(error, Reject):
        return dead(handler, delivery, "rejected", error)
    if isinstance(error, RetryAfter):
        # the handler asked for it, so it does not matter which errors the policy is for
        delay = max(error.delay, timedelta()) if delivery.attempt < handler.retry.attempts else None
    else:
        delay = handler.retry.decide(delivery.attempt, error, random)
    if delay is None:
        return dead(handler, delivery, "exhausted", error)
    return Retry(delay, failure(handler, delivery, "failed", error), delivery.attempt + 1)


def dead(handler: Handler, delivery: Delivery, reason: Reason, error: BaseException, runs: int = 1) -> DeadLetter:
    """Return the dead letter of a delivery; `runs` is 0 where the handler was not called."""
    return DeadLetter(failure(handler, delivery, reason, error, runs))


def failure(
    handler: Handler, delivery: Delivery, reason: Reason | Literal["failed"], error: BaseException, runs: int = 1
) -> Failure:
    """Return the record of a failure; only one that ends in a dead letter carries a traceback."""
    at = clock.now()
    return Failure(
        service=handler.service,
        handler=handler.name,
        reason=reason,
        error_type=type(error).__qualname__,
        error=text_of(error),
        traceback="" if reason == "failed" else traceback_of(error),
        attempts=delivery.attempt - 1 + runs,
        first_failed_at=delivery.first_failed_at or at,
        last_failed_at=at,
        worker=worker_name(),
        exception=error,
    )


def text_of(error: BaseException) -> str:
    """Return the exception's text, capped; also of one whose `str()` raises."""
    try:
        text = str(error)
    except Exception as second:
        text = f"(its text cannot be had: str() raised {type(second).__qualname__})"
    return _writable(text if len(text) <= LONGEST_ERROR else text[:LONGEST_ERROR] + " …")


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback, capped to its end."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as second:
        text = f"(the traceback cannot be had: formatting raised {type(second).__qualname__})"
    return _writable(text if len(text) <= LONGEST_TRACEBACK else "… " + text[-LONGEST_TRACEBACK:])


def _writable(text: str) -> str:
    """Escape lone surrogates, as file names have them: no log and no wire could carry them."""
    return text.encode("utf-8", "backslashreplace").decode()
