"""Interrupts: whether a KeyboardInterrupt may be Ctrl-C, or is a handler's own, and so the failure of its message."""

from __future__ import annotations

import signal
import weakref
from typing import Any, Final, TypeVar


F = TypeVar("F")

_QUIET: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def raises_nothing(signalled: F) -> F:
    """Note, as a decorator, a function that handles signals: while SIGINT is its, no KeyboardInterrupt is Ctrl-C."""
    _QUIET.add(signalled)
    return signalled


def may_be_ctrl_c(error: BaseException) -> bool:
    """Tell whether what was raised in the main thread may be Ctrl-C."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) not in _QUIET
