"""What is open beside a program ends with it; a forked child leaves it to its parent. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .forked import WITHIN


OPEN = """if True:
    import atexit, os, signal, sys, threading
    from contextlib import ExitStack
    from bus import Event, connect_sync, client

    class Placed(Event, type="order.placed"): ...

    class Told:
        async def publish(self, messages):
            print("published", flush=True)

        async def aclose(self):
            print("closed", flush=True)

    client.transport = lambda settings: client._closing(Told())
    stack = ExitStack()
    bus = stack.enter_context(connect_sync("memory://"))
    bus.publish(Placed())
"""
FORK = """
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        print("child", os.waitstatus_to_exitcode(status), flush=True)
        {parent}
    else:
        signal.alarm({within})
        {child}
        sys.exit(7)
"""


def lines_of(more: str) -> list[str]:
    """Run a program that opens a bus, publishes and goes on; return what it says."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", OPEN + more],
        capture_output=True,
        text=True,
        check=False,
        timeout=WITHIN,
    )
    assert ran.stderr == ""
    return ran.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    "more",
    ["", "    del stack\n", "    stack.close()\n", "    atexit.register(stack.close)\n"],
    ids=["open", "forgotten", "closed", "at exit"],
)
def test_what_is_open_when_the_program_ends_is_closed_once(more: str) -> None:
    assert lines_of(more) == ["published", "closed"]


def test_a_call_of_a_thread_that_nobody_waits_for_does_not_keep_the_program() -> None:
    more = """
    import asyncio
    begun = threading.Event()
    async def publish(messages):
        begun.set()
        await asyncio.sleep(86400)
    Told.publish = staticmethod(publish)
    def call():
        try:
            bus.publish(Placed())
        except BaseException:
            pass
    threading.Thread(target=call, daemon=True).start()
    begun.wait()
"""
    assert lines_of(more) == ["published", "closed"]


@pytest.mark.parametrize(
    "child",
    ["pass", "stack.close()", "atexit.register(stack.close)", "del stack, bus"],
    ids=["open", "closed", "at exit", "forgotten"],
)
def test_a_forked_child_ends_and_leaves_the_bus_to_its_parent(child: str) -> None:
    more = FORK.format(within=WITHIN // 2, child=child, parent="bus.publish(Placed())")
    assert lines_of(more) == ["published", "child 7", "published", "closed"]


def test_a_forked_child_may_open_its_own() -> None:
    more = FORK.format(
        within=WITHIN // 2, child='with connect_sync("memory://") as own: own.publish(Placed())', parent="pass"
    )
    assert lines_of(more) == ["published", "published", "closed", "child 7", "closed"]
