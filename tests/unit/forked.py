"""Children of a test's own process, as a pool of processes has them."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest


WITHIN: Final = 20
FORKS: Final = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""Mark of a test that forks: Python warns of the threads that there are."""


@contextmanager
def forked(work: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Fork a child that does some work, and then, for as long as the block runs, stands still."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(writing, b"done")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        ended, _, _ = select.select([reading], [], [], WITHIN)
        assert ended, "the child stands still"
        assert os.read(reading, 4) == b"done", "the child failed"
        yield
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
