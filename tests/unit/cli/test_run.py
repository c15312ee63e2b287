"""`run`: the worker as a process of its own: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest


ROOT = Path(__file__).parents[3]
WITHIN = 30
APP = """
import asyncio, atexit, sys, threading, time
from collections.abc import AsyncIterator

from bus import App, ConfigurationError, Event, Service


class Ordered(Event, type="stall.ordered"):
    key: str = ""

kitchen, till = Service("kitchen"), Service("till")

@kitchen.on(Ordered)
async def cook(ordered: Ordered) -> None: ...

@till.on(Ordered)
async def charge(ordered: Ordered) -> None: ...

{more}

if __name__ == "__main__":
    App("stall", events="stall", services="stall").cli()
"""
RESOURCE = """
@kitchen.resource
async def stove() -> AsyncIterator[str]:
    {body}
    yield "stove"
"""


class Program:
    """The stall's process, and the lines that it wrote to standard error."""

    def __init__(self, folder: Path, more: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        (folder / "stall.py").write_text(APP.format(more=more))
        bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
        self.process = subprocess.Popen(
            [sys.executable, "stall.py", *arguments],
            cwd=folder,
            env=bare | {"PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def until(self, event: str) -> dict[str, Any]:
        """Read on to the log line of an event."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("{") and (told := json.loads(line))["event"] == event:
                return dict(told)
        raise AssertionError(f"{event!r} was never told: {self.lines}")

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ends(self) -> tuple[int, str, str]:
        """Return exit code, standard output, and the rest of standard error."""
        out, err = self.process.communicate(timeout=WITHIN)
        return self.process.returncode, out, err


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the stall; it is killed in the end if it still runs."""
    started: list[Program] = []

    def start(*arguments: str, more: str = "", **environment: str) -> Program:
        started.append(Program(tmp_path, more, arguments, environment))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.communicate()


@pytest.fixture
def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [[], ["run"]])
def test_a_signal_ends_it_with_0(start: Start, number: signal.Signals, arguments: list[str]) -> None:
    program = start(*arguments)
    assert program.until("worker started")["services"] == ["kitchen", "till"]
    program.signal(number)
    code, out, err = program.ends()
    assert (code, out) == (0, "")
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["worker stopping", "worker stopped"]


def test_without_a_url_it_says_that_it_runs_on_memory_and_what_that_means(start: Start) -> None:
    program = start()
    told = program.until("memory bus")
    assert told["level"] == "warning"
    assert "nobody else can publish to it, and everything is gone" in told["told"]


def test_it_hosts_a_part(start: Start) -> None:
    assert start("run", "--service", "till").until("worker started")["services"] == ["till"]


def test_an_unknown_setting_is_warned_about(start: Start) -> None:
    told = start(BUS_GRACEE="1").until("unknown setting")
    assert told["told"] == "BUS_GRACEE is no setting of Tidegate; did you mean BUS_GRACE?"


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (["run", "--service", "bar"], {}, ["there is no service 'bar'; there are kitchen, till"]),
        (
            [],
            {"BUS_URL": "amqp://host?heartbeat=often"},
            ["BUS_URL: its one option is ?heartbeat=seconds, from 1 to 600"],
        ),
        (
            [],
            {"BUS_GRACE": "long", "BUS_MAX_HOPS": "-1"},
            [
                "BUS_GRACE='long': it must be a number of seconds above 0",
                "BUS_MAX_HOPS='-1': it must be a whole number of 1 or more",
            ],
        ),
        (
            [],
            {"BUS_HTTP": "8080"},
            ["BUS_HTTP='8080': it must be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080"],
        ),
    ],
)
def test_a_mistake_is_told_in_lines_and_exits_2(
    start: Start, arguments: list[str], environment: dict[str, str], told: list[str]
) -> None:
    code, out, err = start(*arguments, **environment).ends()
    assert (code, out, err.splitlines()) == (2, "", told)


def test_a_mistake_exits_2_though_nobody_reads_what_it_was(start: Start) -> None:
    program = start(BUS_GRACE="long", PYTHONUNBUFFERED="")
    assert program.process.stderr is not None
    program.process.stderr.close()
    assert program.process.wait(WITHIN) == 2


def test_it_serves_health_and_a_port_that_is_taken_is_one_line(start: Start, free_port: int) -> None:
    http = f"127.0.0.1:{free_port}"
    program = start(BUS_HTTP=http)
    program.until("worker started")
    told = httpx.get(f"http://{http}/readyz").json()
    assert told["handlers"] == {"kitchen.cook": {"state": "consuming"}, "till.charge": {"state": "consuming"}}
    code, out, err = start(BUS_HTTP=http, BUS_LOG_LEVEL="error").ends()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"BUS_HTTP='{http}': cannot listen there: ")
    program.signal()
    assert program.ends()[0] == 0


def test_what_opening_a_resource_raises_is_told(start: Start) -> None:
    more = RESOURCE.format(body='raise ConfigurationError("the stove is not connected")')
    code, _, err = start(more=more, BUS_LOG_LEVEL="error").ends()
    assert (code, err) == (2, "the stove is not connected\n")


def test_a_second_signal_ends_it_at_once_even_where_the_loop_is_blocked(start: Start) -> None:
    body = 'print("blocked", flush=True); time.sleep(600)'
    program = start(more=RESOURCE.format(body=body))
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "blocked\n"
    program.signal()
    program.signal(signal.SIGINT)
    assert program.ends()[0] == 130


@pytest.mark.parametrize(
    "body",
    [
        "threading.Thread(target=time.sleep, args=(600,)).start()",
        "asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)",
    ],
    ids=["thread", "executor"],
)
def test_a_thread_that_hangs_does_not_keep_the_process(start: Start, body: str) -> None:
    program = start(more=RESOURCE.format(body=body))
    program.until("worker started")
    program.signal()
    assert program.ends()[0] == 0


@pytest.mark.parametrize(
    ("body", "end", "code", "told"),
    [
        ("asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)", 'raise OSError("still out")', 1, True),
        (
            'threading.Thread(target=time.sleep, args=(600,)).start(); raise ConfigurationError("still out")',
            "",
            2,
            False,
        ),
    ],
    ids=["error", "mistake"],
)
def test_a_thread_that_hangs_does_not_keep_a_process_that_fails(
    start: Start, body: str, end: str, code: int, told: bool
) -> None:
    program = start(more=RESOURCE.format(body=body) + "    " + end)
    if told:
        program.until("worker started")
        program.signal()
    ended, _, err = program.ends()
    # the last line of a traceback tells which resource was closed
    last = err.splitlines()[-2 if told else -1]
    assert (ended, "still out" in last, "Traceback" in err) == (code, True, told)


BESIDE = """
async def beside() -> None:
    while True:
        try:
            await asyncio.sleep(600)
        except BaseException:
            pass
"""


def test_a_task_that_swallows_its_cancellation_is_told_of_and_does_not_keep_the_process(start: Start) -> None:
    program = start(more=BESIDE + RESOURCE.format(body="task = asyncio.create_task(beside())"))
    program.until("worker started")
    program.signal()
    assert "swallow CancelledError" in program.until("tasks do not end")["told"]
    assert program.ends()[0] == 0


PUBLISHING = """
import gc
from bus import Settings
from bus.client import Bus
from bus.transport.memory import MemoryTransport

async def publish(count: int) -> None:
    transport = next(each for each in gc.get_objects() if isinstance(each, MemoryTransport))
    await Bus(transport, Settings(), "/stall").publish(*(Ordered() for _ in range(count)))
"""
PRINTING = """
import os

@kitchen.on(Ordered, name="stir", concurrency=1)
async def stir(ordered: Ordered) -> None:
    os.write(1, b"stirs\\n")
    print("it is not flushed")
"""


def test_a_worker_goes_on_whose_log_nobody_reads_and_stops_when_it_is_told_to(start: Start) -> None:
    program = start(more=PUBLISHING + PRINTING + RESOURCE.format(body="await publish(2)"), PYTHONUNBUFFERED="")
    assert program.process.stderr is not None
    assert program.process.stdout is not None
    program.process.stderr.close()
    assert [program.process.stdout.readline() for _ in range(2)] == ["stirs\n", "stirs\n"]
    program.process.stdout.close()
    program.signal()
    assert program.process.wait(WITHIN) == 0


STUBBORN = """
@kitchen.on(Ordered, name="stir"{ordered})
async def stir(ordered: Ordered) -> None:
    print("stirs", flush=True)
    while True:
        try:
            await asyncio.sleep(600)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("ordered", ["", ', ordered_by="key"'])
def test_a_handler_that_swallows_its_cancellation_is_named_and_does_not_keep_the_process(
    start: Start, ordered: str
) -> None:
    more = PUBLISHING + STUBBORN.format(ordered=ordered) + RESOURCE.format(body="await publish(1)")
    program = start(more=more, BUS_GRACE="0.1")
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "stirs\n"
    program.signal()
    told = program.until("handler does not end")
    assert (told["handler"], told["runs"]) == ("kitchen.stir", 1)
    assert "swallows CancelledError" in told["told"]
    assert program.ends()[0] == 0


def test_threads_that_end_in_time_leave_the_program_its_own_goodbye(start: Start) -> None:
    body = 'await asyncio.to_thread(time.sleep, 0); atexit.register(print, "goodbye")'
    program = start(more=RESOURCE.format(body=body))
    program.until("worker started")
    program.signal()
    assert program.ends()[:2] == (0, "goodbye\n")


def test_help_imports_neither_the_app_nor_a_broker(start: Start) -> None:
    told = 'atexit.register(lambda: print(*sorted(sys.modules), sep="\\n"))'
    code, out, _ = start("--help", more=told).ends()
    assert code == 0
    loaded = set(out.splitlines())
    assert "typer" in loaded
    assert loaded & {"stall", "aio_pika", "pamqp", "bus.transport.rabbitmq", "bus.transport.memory", "uvloop"} == set()


def test_a_reader_that_goes_away_is_no_traceback(start: Start) -> None:
    program = start("services")
    assert program.process.stdout is not None
    program.process.stdout.close()
    assert program.process.stderr is not None
    assert program.process.stderr.read() == ""
    assert program.process.wait(WITHIN) == 1
