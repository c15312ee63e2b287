"""Forks: what a forked child must not have of its parent, such as its connections, locks and signal handlers."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeVar


Owner = TypeVar("Owner")

_CALLS: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], object]]] = weakref.WeakKeyDictionary()
_FORKING: Final = threading.local()


def in_child(owner: Owner, call: Callable[[Owner], object]) -> None:
    """Have every child that is forked call this with its copy of the owner, before anything else runs in it.

    It holds for as long as the owner lives.
    """
    _listen()
    _CALLS[owner] = call


def let_go(descriptor: int) -> None:
    """Let go of a child's copy of an open file; nothing is said or shut down, and the parent's stays as it is.

    The number stays taken: whoever has it in this copy of the parent may yet close it, or have a selector forget it,
    which the two processes share.
    """
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)


@cache
def _listen() -> None:
    # nobody can take that back: it is asked for once, and what lives no more is not called
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_begin, after_in_parent=_end, after_in_child=_end_in_child)


def _begin() -> None:
    # one that came to the child before it has a way to take it would be lost
    _FORKING.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _end() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _FORKING.mask)


def _end_in_child() -> None:
    failed = []
    for owner, call in list(_CALLS.items()):
        try:
            call(owner)
        except Exception as error:
            failed.append(error)
    _end()
    if failed:
        # the interpreter tells of it, and the child goes on
        raise ExceptionGroup("a forked child keeps what is its parent's", failed)
