"""Wall time and monotonic time: the only place that asks for them.

Inside a running event loop the loop's clock is the truth: tests let it jump, and wall time jumps with it, in threads
too.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias


Seconds: TypeAlias = float | timedelta
"""A span of time: seconds as a number, or a timedelta."""

LONGEST_DELAY: Final = timedelta(days=310)
"""The longest that a broker of ours holds a message back."""


def span(seconds: Seconds) -> timedelta:
    """Return `seconds` as a timedelta; raises TypeError for what is no time, and what timedelta raises for nan."""
    try:
        return seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
    except TypeError:
        raise TypeError(f"{seconds!r} is no span of time: give seconds as a number, or a timedelta") from None


JUMPING: Final[list[asyncio.AbstractEventLoop]] = []
"""The event loops whose clock a test lets jump; where no loop runs, as in a thread, the last of them counts."""


def now() -> datetime:
    """Return wall time in UTC; it jumps with the running loop's clock where a test lets that jump."""
    loop = asyncio._get_running_loop() or (JUMPING[-1] if JUMPING else None)
    skipped = getattr(loop, "skipped", 0.0) if loop is not None else 0.0
    return datetime.fromtimestamp(time.time() + skipped, UTC)


def monotonic() -> float:
    """Return seconds of real time from an arbitrary start, for durations."""
    return time.monotonic()


def processor() -> float:
    """Return the seconds that this process has kept processors busy."""
    return time.process_time()
