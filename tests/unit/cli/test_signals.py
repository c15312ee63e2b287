"""Signals: what they do comes before what is told of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bus.cli.signals import stop_on_signals
from tests.unit.forked import FORKS


WITHIN = 20
WENT_ON = 7

AT_ONCE = pytest.mark.parametrize("at_once", [None, lambda: None], ids=["with a supervisor", "alone"])


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


@FORKS
@AT_ONCE
async def test_a_forked_child_ends_at_sigterm_however_early_it_comes(at_once: Callable[[], None] | None) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop, None, "worker stopping", at_once)
    for _ in range(10):
        assert _code_of(signal.pause, signal.SIGTERM) == -signal.SIGTERM
    assert not stop.is_set()


@FORKS
@AT_ONCE
async def test_a_forked_child_goes_on_at_a_terminals_first_ctrl_c(at_once: Callable[[], None] | None) -> None:
    stop_on_signals(asyncio.Event(), None, "worker stopping", at_once)

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(WENT_ON)

    assert _code_of(interrupted) == WENT_ON


@FORKS
def test_a_forked_child_keeps_what_somebody_else_does_at_sigterm() -> None:
    asyncio.run(_asked_to_stop())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(WENT_ON))
    assert _code_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == WENT_ON


async def _asked_to_stop() -> None:
    stop_on_signals(asyncio.Event(), None, "worker stopping", None)


def _code_of(work: Callable[[], object], number: int = 0) -> int | None:
    """Return the exit code of a forked child that does some work, and is signalled at once."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    try:
        os.kill(child.pid or 0, number)
        child.join(WITHIN)
        return child.exitcode
    finally:
        child.kill()
        child.join()
