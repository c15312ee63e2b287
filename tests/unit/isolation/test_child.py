"""Processes as their supervisor sees them, whatever they do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import AbstractAsyncContextManager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bus.isolation.child import Child, spawned
from bus.isolation.supervisor import Supervisor


WITHIN = 20
TORN = """
import os, sys
os.write(int(sys.argv[-1].rpartition("=")[2]), b'{"id": 1, "stat')
os._exit(3)
"""
BABBLING = """
import os, sys, time
os.write(int(sys.argv[-1].rpartition("=")[2]), b'no JSON\\n')
time.sleep(60)
"""
STEADY = """
import asyncio, sys
from bus import logs
from bus.cli.signals import stop_on_signals
from bus.isolation.supervised import Supervised

async def work():
    stop = asyncio.Event()
    stop_on_signals(stop, logs.logger(), "worker stopping", None)
    Supervised("steady", int(sys.argv[-1].rpartition("=")[2]), 5).tell(started=1)
    await stop.wait()
    await asyncio.sleep(0.5)  # drains

asyncio.run(work())
"""
UNABLE = """
import sys, time
from bus.isolation.supervised import Supervised

def unable(asked):
    raise ZeroDivisionError

place = Supervised("unable", int(sys.argv[-1].rpartition("=")[2]), 0)
place.answering(unable)
place.tell(started=1)
time.sleep(60)
"""
STUCK = """
import os, sys, time
from bus.isolation.supervised import Supervised

ours, theirs = os.pipe()
os.dup2(theirs, 2)
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(2, True)
place = Supervised("stuck", int(sys.argv[-1].rpartition("=")[2]), 60)
place.tell(started=1)
time.sleep(600)
"""
COUNTING = """
import sys, time
from bus.endpoint import Answer
from bus.isolation.supervised import Supervised

paths = []

def count(asked):
    paths.append(asked.path)
    return Answer(200, " ".join(paths))

place = Supervised("counting", int(sys.argv[-1].rpartition("=")[2]), 0)
place.answering(count)
place.tell(started=1)
time.sleep(60)
"""
QUICK = "raise SystemExit(0)"
PROGRAMS = {
    "quick": QUICK,
    "unable": UNABLE,
    "torn": TORN,
    "babbling": BABBLING,
    "steady": STEADY,
    "counting": COUNTING,
}


def start(name: str, _: object) -> AbstractAsyncContextManager[Child]:
    return spawned(name, [sys.executable, "-c", PROGRAMS[name]])


async def running(supervisor: Supervisor, name: str) -> int:
    """Wait until a process has started, and return its id."""
    (kept,) = [kept for kept in supervisor.kept if kept.name == name]
    async with asyncio.timeout(WITHIN):
        while not isinstance(kept.child, Child) or "started" not in kept.child.told:
            await asyncio.sleep(0.02)
    return kept.child.pid


@pytest.mark.parametrize("sick", ["torn", "babbling"])
async def test_what_a_process_tells_harms_no_other(sick: str) -> None:
    supervisor = Supervisor({sick: {sick: []}, "steady": {"steady": []}}, start, grace=0, tell=print)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(supervisor.run(stop))
        steady = await running(supervisor, "steady")
        if sick == "torn":
            async with asyncio.timeout(WITHIN):
                while not supervisor.kept[0].restarts:
                    await asyncio.sleep(0.02)
        assert not keeping.done()
        assert await running(supervisor, "steady") == steady
        stop.set()
    assert supervisor.kept[1].restarts == 0


async def test_a_process_drains_that_is_told_to_stop_by_its_supervisor_and_by_whoever_stops_them_all() -> None:
    supervisor = Supervisor({"steady": {"steady": []}}, start, grace=WITHIN, tell=print)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(supervisor.run(stop))
        pid = await running(supervisor, "steady")
        stop.set()
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
    assert keeping.result() == 0


async def test_a_process_goes_on_that_cannot_answer_a_question() -> None:
    async with start("unable", None) as child:
        async with asyncio.timeout(WITHIN):
            while "started" not in child.told:
                await asyncio.sleep(0.02)
        answers = [await child.ask("GET", "/readyz") for _ in range(2)]
    assert [answer.status for answer in answers if answer is not None] == [500, 500]


async def test_what_a_process_was_asked_while_it_stood_still_is_not_done_later() -> None:
    async with start("counting", None) as child:
        async with asyncio.timeout(WITHIN):
            while "started" not in child.told:
                await asyncio.sleep(0.02)
            while await child.ask("POST", "/pause/cook") is None:
                pass
            child.signal(signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
            assert await child.ask("POST", "/pause/charge") is None
            child.signal(signal.SIGCONT)
            while (answer := await child.ask("GET", "/readyz")) is None:
                pass
    assert isinstance(answer.body, str)
    assert set(answer.body.split()) == {"/pause/cook", "/readyz"}


ODD = {
    "a number": b"1",
    "null": b"null",
    "a list": b"[]",
    "an odd id": b'{"id": []}',
    "no status": b'{"id": 0}',
    "an odd body": b'{"id": 0, "status": 200, "body": 1}',
    "an odd mistake": b'{"mistake": 5}',
    "odd lines of a mistake": b'{"mistake": [5]}',
    "odd handlers": b'{"handlers": 1}',
    "odd names of handlers": b'{"handlers": {"kitchen": 1}}',
    "two at once": b'{"started": 1, "mistake": 5}',
    "too deep": b"[" * 100_000,
    "no text": b"\xff",
}


@pytest.mark.parametrize("line", ODD.values(), ids=list(ODD))
async def test_what_nobody_understands_ends_nobody(line: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(line + b"\n")
    reader.feed_eof()
    child = Child(cast("Any", SimpleNamespace(pid=4711)), cast("Any", None))
    await child.read(reader)
    assert child.told.keys() <= {"started"}


async def test_a_process_that_ends_while_it_is_signalled_has_its_own_exit_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait, signalled = os.waitpid, threading.Event()

    def later(pid: int, options: int) -> tuple[int, int]:
        signalled.wait(WITHIN)
        return wait(pid, options)

    monkeypatch.setattr(os, "waitpid", later)
    async with start("quick", None) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        child.signal(signal.SIGTERM)
        signalled.set()
        assert await child.ended() == 0


def test_a_process_whose_log_is_read_no_further_stops_with_its_supervisor() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", STUCK, f"--supervised=stuck={theirs.fileno()}"]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(WITHIN)
        assert b"started" in ours.recv(100)
        ours.close()
        try:
            assert process.wait(WITHIN) == -signal.SIGTERM
        finally:
            process.kill()
