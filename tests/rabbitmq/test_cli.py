"""The command line as processes against a real broker: the worker, publishing, dead letters, refusals."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker.fixtures import Shared


ROOT = Path(__file__).parents[2]
WITHIN = 40
STALL = """
import sys, time
from bus import App, Event, Reject, Service, fixed


class Ordered(Event, type="stall.ordered"):
    dish: str

class Cooked(Event, type="stall.cooked"):
    dish: str

kitchen, till = Service("kitchen"), Service("till")

@kitchen.on(Ordered)
async def cook(ordered: Ordered) -> Cooked:
    if ordered.dish == "stone" and "--service" not in sys.argv:
        raise Reject("nobody can cook that")
    return Cooked(dish=ordered.dish)

@kitchen.on(Cooked)
async def serve(cooked: Cooked) -> None:
    print("served", cooked.dish, flush=True)

@till.on(Ordered, retry=fixed(1, 0))
def charge(ordered: Ordered) -> None:
    if ordered.dish == "stone":
        raise ValueError("\\x1b[2Jno price")
    if ordered.dish == "feast":
        print("charging", flush=True)
        time.sleep(600)

if __name__ == "__main__":
    App("stall", events="stall", services="stall").cli()
"""
SOUP = '{"dish": "soup"}'
STONE = '{"dish": "stone"}'

Cli = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def stall(tmp_path: Path) -> Path:
    """The folder of the stall's program."""
    (tmp_path / "stall.py").write_text(STALL)
    return tmp_path


def environment(url: str, **more: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    return bare | {"PYTHONPATH": str(ROOT), "BUS_URL": url} | more


@pytest.fixture
def cli(stall: Path, vhost: str) -> Cli:
    """Run a command to its end."""

    def run(*arguments: str, url: str = vhost, input: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "stall.py", *arguments],
            cwd=stall,
            env=environment(url, **more),
            capture_output=True,
            text=True,
            check=False,
            input=input,
            timeout=WITHIN,
        )

    return run


@pytest.fixture
def start(stall: Path, vhost: str) -> Iterator[Start]:
    """Start a worker; it is killed in the end if it still runs."""
    started = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "stall.py", *arguments],
            cwd=stall,
            env=environment(vhost, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(worker)
        assert worker.stderr is not None
        assert any('"worker started"' in line for line in worker.stderr)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.communicate()


def stop(worker: subprocess.Popen[str]) -> str:
    """Stop a worker as a service manager does, see that it ends well, and return its log."""
    worker.terminate()
    _, log = worker.communicate(timeout=WITHIN)
    assert worker.returncode == 0, log
    return log


def said(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def letters(cli: Cli, expected: int, *filters: str, at_most: bool = False) -> list[str]:
    """Return the letters' names as soon as there are so many, or at most so many."""
    until = time.monotonic() + WITHIN
    while True:
        listed = cli("dead", "list", "--json", *filters)
        assert listed.returncode == 0, listed.stderr
        names = [f"{letter['service']}/{letter['id']}" for letter in json.loads(listed.stdout)]
        if len(names) == expected or (at_most and len(names) < expected):
            return names
        assert time.monotonic() < until, names


def test_what_is_published_is_handled_by_the_worker(cli: Cli, start: Start) -> None:
    worker = start("run")
    done = cli("publish", "stall.ordered", input='{"dish": "soup"}\n{"dish": "pie"}\n')
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 2
    assert {said(worker), said(worker)} == {"served soup", "served pie"}
    log = stop(worker)
    acked = [line for line in map(json.loads, log.splitlines()) if line["event"] == "ack"]
    assert {line["id"] for line in acked} >= set(done.stdout.split())


def test_a_plain_function_that_hangs_is_released_and_does_not_keep_the_process(cli: Cli, start: Start) -> None:
    worker = start(BUS_GRACE="0.2")
    cli("publish", "stall.ordered", '{"dish": "feast"}')
    assert "charging" in {said(worker), said(worker)}
    stop(worker)
    # it was neither acked nor given up: the next worker has it
    again = start("run", "--service", "till")
    assert said(again) == "charging"


def test_dead_letters_are_listed_shown_replayed_and_discarded(cli: Cli, start: Start) -> None:
    worker = start()
    cli("publish", "stall.ordered", input=f"{STONE}\n{STONE}\n")
    first, second, *tills = letters(cli, 4)
    assert (first[:10], second[:10], [name[:7] for name in tills]) == ("kitchen/0-", "kitchen/0-", ["till/0-"] * 2)
    stop(worker)
    listed = cli("dead", "list", COLUMNS="200")
    assert "4 dead letters" in listed.stdout
    assert "ValueError: \\x1b[2Jno price" in listed.stdout
    assert "\x1b" not in listed.stdout
    shown = cli("dead", "show", second).stdout
    assert all(part in shown for part in ("Reject: nobody can cook that", '"dish": "stone"', "stall.py", "message id"))

    assert cli("dead", "discard", "--service", "till", "--yes").stdout == "discard: 2 of 2 done\n"
    assert cli("dead", "replay", second.partition("/")[2]).stdout == "replay: 1 of 1 done\n"
    assert letters(cli, 1) == [first]
    gone = cli("dead", "replay", second)
    assert (gone.returncode, gone.stdout) == (1, "")

    # a worker that can cook a stone gets the one that was replayed
    assert said(start("run", "--service", "kitchen")) == "served stone"


def test_two_operators_who_replay_a_letter_make_one_copy(cli: Cli, start: Start, stall: Path, vhost: str) -> None:
    worker = start("run", "--service", "till")
    cli("publish", "stall.ordered", STONE)
    (name,) = letters(cli, 1, "--service", "till")
    stop(worker)
    command = [sys.executable, "stall.py", "dead", "replay", name]
    both = [
        subprocess.Popen(command, cwd=stall, env=environment(vhost), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [operator.communicate(timeout=WITHIN) for operator in both]
    assert sorted(operator.returncode for operator in both) == [0, 1], told
    again = start("run", "--service", "till")
    (letter,) = letters(cli, 1, "--service", "till")
    assert "failed again" in cli("dead", "list", COLUMNS="200").stdout
    history = cli("dead", "show", letter).stdout
    assert history.count(" replayed by ") == 1
    stop(again)


def test_an_edited_letter_is_handled_and_a_compaction_erases_the_original(
    cli: Cli, start: Start, tmp_path: Path
) -> None:
    worker = start("run", "--service", "till")
    cli("publish", "stall.ordered", STONE)
    (name,) = letters(cli, 1, "--service", "till")
    file = tmp_path / "letters.jsonl"
    assert cli("dead", "export", str(file)).stderr == "export: 1 letters\n"
    editor = f"{sys.executable} -c 'import sys, pathlib as p; f = p.Path(sys.argv[1]); f.write_text(NEW)'"
    editor = editor.replace("NEW", 'f.read_text().replace(chr(115) + "tone", "soup")')
    edited = cli("dead", "edit", name, EDITOR=editor)
    assert (edited.returncode, edited.stdout.startswith(f"edit: {name} was sent to till.charge as ")) == (0, True)
    letters(cli, 0)
    assert cli("dead", "compact", "till", "--yes").stdout.startswith("compact: 1 closed letters of till are erased, 0 ")
    assert [cli("dead", "import", str(file)).stdout for _ in range(2)] == [
        "import: 1 letters\n",
        "import: 0 letters; 1 were open already\n",
    ]
    letters(cli, 1)
    stop(worker)


def test_a_mass_replay_stops_at_ctrl_c_and_is_taken_up_again(cli: Cli, start: Start, stall: Path, vhost: str) -> None:
    worker = start("run", "--service", "till")
    cli("publish", "stall.ordered", input=f"{STONE}\n" * 12)
    letters(cli, 12)
    stop(worker)
    slow = [sys.executable, "stall.py", "dead", "replay", "--rate", "2/s", "--yes"]
    with subprocess.Popen(
        slow, cwd=stall, env=environment(vhost), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as operator:
        while len(letters(cli, 12, at_most=True)) > 10:
            pass
        operator.send_signal(signal.SIGINT)
        out, told = operator.communicate(timeout=WITHIN)
    assert operator.returncode == 130, told
    assert "the same command goes on where this one ended" in told
    done = int(out.split()[1])
    assert 2 <= done < 12
    assert out == f"replay: {done} of 12 done\n"
    left = letters(cli, 12 - done)
    assert cli("dead", "replay", "--yes").stdout == f"replay: {len(left)} of {len(left)} done\n"


def test_a_mass_action_asks_on_a_terminal_and_ctrl_c_ends_it(cli: Cli, start: Start, stall: Path, vhost: str) -> None:
    worker = start()
    cli("publish", "stall.ordered", input=f"{STONE}\n{STONE}\n")
    letters(cli, 2, "--service", "till")
    stop(worker)
    for answer, code, left in (("n\n", 1, 2), ("", 130, 2), ("y\n", 0, 0)):
        assert asked(stall, vhost, answer, "dead", "discard", "--service", "till") == code
        letters(cli, left, "--service", "till")


def asked(folder: Path, url: str, answer: str, *arguments: str) -> int:
    """Run a command at a terminal and answer its question, "" is Ctrl-C; returns the exit code."""
    here, there = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "stall.py", *arguments],
            cwd=folder,
            env=environment(url),
            stdin=there,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as command:
            assert command.stderr is not None
            seen = b""
            while b"[y/N]" not in seen:
                seen += (got := os.read(command.stderr.fileno(), 4096))
                assert got, seen
            assert b"discard 2 dead letters (2 of till.charge)?" in seen
            if answer:
                os.write(here, answer.encode())
            else:
                command.send_signal(signal.SIGINT)
            return command.wait(WITHIN)
    finally:
        os.close(here)
        os.close(there)


@pytest.mark.parametrize(
    "arguments", [["publish", "stall.ordered", SOUP], ["dead", "list"], ["run"]], ids=lambda given: given[0]
)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [("guest:wrong@{host}/", "403 ACCESS_REFUSED"), ("guest:guest@{host}/nowhere", "530 NOT_ALLOWED")],
)
def test_a_refused_login_or_virtual_host_is_one_line_that_names_the_setting(
    cli: Cli, vhost: str, arguments: list[str], wrong: str, told: str
) -> None:
    host = vhost.rpartition("@")[2].partition("/")[0]
    done = cli(*arguments, url="amqp://" + wrong.format(host=host), BUS_LOG_LEVEL="error")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert told in line
    assert line.endswith("check the user, password and virtual host of BUS_URL")


def test_a_missing_permission_is_told(cli: Cli, start: Start, broker: Shared, vhost_name: str) -> None:
    stop(start())
    broker.node.ctl("add_user", vhost_name, "secret")
    broker.node.ctl("set_permissions", "-p", vhost_name, vhost_name, "", "", "")
    url = broker.node.url(vhost_name).replace("guest:guest", f"{vhost_name}:secret")
    for arguments in (["dead", "list"], ["publish", "stall.ordered", SOUP], ["run"]):
        done = cli(*arguments, url=url)
        assert (done.returncode, done.stdout) == (2, "")
        assert "refused for user" in done.stderr
        assert "Traceback" not in done.stderr
        if arguments[0] == "publish":
            (line,) = done.stderr.splitlines()
            assert "permission to write there" in line
            assert "BUS_URL" in line


@pytest.mark.parametrize("arguments", [["publish", "stall.ordered", SOUP], ["dead", "list"]])
def test_no_broker_exits_3(cli: Cli, arguments: list[str]) -> None:
    with socket.socket() as taken:
        # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        done = cli(*arguments, url=f"amqp://127.0.0.1:{taken.getsockname()[1]}/", BUS_PUBLISH_TIMEOUT="0.5")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Connect call failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_required_event_that_nobody_wants_exits_1(cli: Cli) -> None:
    done = cli("publish", "stall.cooked", SOUP, "--required")
    assert (done.returncode, done.stdout) == (1, "")
    assert "unroutable" in done.stderr
