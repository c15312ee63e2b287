"""A limit for what a broker is asked, of a loop that may be busy itself.

After a long turn, a timer that is over comes before the answer that lies there: the broker would be blamed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final


LOOKS: Final = 5
"""Turns of the loop that an answer has at least: to write the question, and to read what came before it."""


@asynccontextmanager
async def patient(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after so many seconds, and as many turns of the loop as an answer may take."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    async with asyncio.timeout(None) as limit:

        def look(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(seconds / LOOKS, look, left - 1)
            else:
                limit.reschedule(loop.time())

        timer = loop.call_later(seconds / LOOKS, look, LOOKS - 1)
        try:
            yield
        finally:
            timer.cancel()
