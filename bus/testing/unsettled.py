"""What does not come to its end on a Tester, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import TidegateError
from ..service import Handler
from .ran import Run


class NotSettled(TidegateError, AssertionError):
    """The bus did not settle, or its worker did not end: the message says what is left, in which handlers, and why."""


def not_come(what: str, why: Iterable[str], running: Counter[Handler]) -> NotSettled:
    """Return the error of what does not come to its end: why not, and which handlers are running, and where."""
    return NotSettled("\n  ".join([what, *why, *busy(running)]))


def busy(running: Counter[Handler]) -> list[str]:
    """Return the handlers that are running, and where they are written."""
    handlers = [(handler.subscription_name, handler.function.__code__) for handler in +running]
    return [f"running: {name} ({code.co_filename}:{code.co_firstlineno})" for name, code in handlers]


def busiest(runs: Iterable[Run]) -> str:
    """Return what suggests that deliveries never end."""
    most = Counter(run.handler.subscription_name for run in runs).most_common(3)
    return "it goes round in circles? busiest: " + ", ".join(f"{name} ({n})" for name, n in most)
