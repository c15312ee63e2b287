"""Signals: what they do comes before what is told of it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from bus.cli.signals import stop_on_signals


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_signal_stops_a_program_whose_log_fails() -> None:
    class Failing:
        def info(self, *_: object, **__: Any) -> None:
            raise BrokenPipeError

    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    stop = asyncio.Event()
    stop_on_signals(stop, Failing(), "worker stopping", None)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(20):
        await stop.wait()
    assert [type(each["exception"]) for each in told] == [BrokenPipeError]
