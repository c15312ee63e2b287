"""`topology` as processes against a real broker: two versions of one app, told apart by the environment."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aio_pika
import pytest

from tests.broker.fixtures import Shared
from tests.contract.roles import Rights, limited

from .test_cli import environment


WITHIN = 40
STALL = """
import os
from bus import App, Event, Service, fixed


class Ordered(Event, type="stall.ordered"):
    dish: str

class Cooked(Event, type="stall.cooked"):
    dish: str

kitchen = Service("kitchen")
OLD = os.environ.get("VERSION") == "old"

@kitchen.on(*([Ordered, Cooked] if OLD else [Ordered]), name="cook", retry=fixed(2, 7 if OLD else 3))
async def cook(event: Event) -> None: ...

for number in range(int(os.environ.get("MANY", "1")) if OLD else 0):
    @kitchen.on(Ordered, name=f"serve_{number}", retry=fixed(2, 7))
    async def serve(event: Event) -> None: ...

app = App("stall", events="stall", services="stall")
if __name__ == "__main__":
    app.cli()
"""
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stall(tmp_path: Path) -> Path:
    """The folder of the stall's program."""
    (tmp_path / "stall.py").write_text(STALL)
    return tmp_path


@pytest.fixture
def cli(stall: Path, vhost: str) -> Cli:
    """Run a command of `topology` to its end."""

    def run(*arguments: str, url: str = vhost, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "stall.py", "topology", *arguments]
        return subprocess.run(
            command,
            cwd=stall,
            env=environment(url, **more),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=WITHIN,
        )

    return run


def test_an_apply_says_what_it_declared_and_a_second_one_that_it_is_there(cli: Cli) -> None:
    first = cli("apply")
    assert (first.returncode, first.stderr) == (0, "")
    assert "declared queue kitchen.cook" in first.stdout
    again = cli("apply")
    assert (again.returncode, again.stderr) == (0, "")
    count = first.stdout.splitlines()[-1].split()[1]
    assert again.stdout == f"apply: {count} of {count} are there, 0 of them new\n"


def test_the_tree_shows_what_is_declared_and_what_is_left_over(cli: Cli) -> None:
    fresh = cli()
    assert "kitchen.cook: not there yet" in fresh.stdout
    assert "tidegate.topology is empty" in fresh.stdout
    cli("apply", VERSION="old")
    applied = cli("apply")
    assert "left over are 1 binding, 1 queue, 1 retry step; `topology prune` removes them" in applied.stdout
    shown = cli().stdout
    assert shown == cli("show").stdout
    for part in (
        "queue kitchen.cook: 0 ready, no consumers",
        "stall.ordered ← events",
        "stall.cooked ← events (left over)",
        "retry steps kitchen.retry.3000, ….10000: 0 ready",
        "dead letters kitchen.dead: ",
        "suspects kitchen.suspects: ",
        "delay cascade: 0 ready",
        "record tidegate.topology: ",
        "declared by other versions",
        "queue kitchen.serve_0: 0 ready, no consumers (declared ",
        "retry step kitchen.retry.7000: 0 ready (declared ",
    ):
        assert part in shown, shown
    assert "not there yet" not in shown
    told = json.loads(cli("--json").stdout)
    assert sorted(part["kind"] for part in told["left"]) == ["binding", "queue", "step"]
    chart = cli("--mermaid").stdout
    assert chart.startswith("flowchart LR\n")
    assert "stall.cooked (left over)" in chart.replace("#40;", "(").replace("#41;", ")")


def test_a_prune_asks_and_scripts_answer(cli: Cli) -> None:
    cli("apply", VERSION="old")
    cli("apply")
    refused = cli("prune")
    assert refused.returncode == 2
    assert "would remove queue kitchen.serve_0" in refused.stdout
    assert "There is no terminal to ask at: add --yes" in refused.stderr
    done = cli("prune", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("prune: 3 of 3 removed\n")
    assert cli("prune").stdout == "prune: nothing is left over\n"


async def test_who_may_not_read_what_others_declared_is_not_told_that_nothing_is_left_over(
    cli: Cli, broker: Shared, vhost_name: str
) -> None:
    cli("apply", VERSION="old")
    cli("apply")
    url = await limited(broker.node, vhost_name, f"stall-{vhost_name}", Rights(".*", ".*", "^(kitchen|events|delay)"))
    done = cli("prune", "--yes", url=url)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("what other versions declared is not known: ACCESS_REFUSED")
    assert line.endswith("so nothing is removed")


def test_messages_are_counted_kept_and_removed_when_that_is_asked_for(cli: Cli, stall: Path, vhost: str) -> None:
    cli("apply", VERSION="old")
    publish = [sys.executable, "stall.py", "publish", "stall.ordered", '{"dish": "soup"}']
    subprocess.run(publish, cwd=stall, env=environment(vhost), check=True, capture_output=True, timeout=WITHIN)
    cli("apply")
    kept = cli("prune", "--yes").stdout
    assert "keeps queue kitchen.serve_0: 1 ready, no consumers: it has messages: --with-messages" in kept
    assert "prune: 2 of 2 removed" in kept
    done = cli("prune", "--yes", "--with-messages")
    assert done.returncode == 0
    assert done.stdout.endswith("prune: 1 of 1 removed, and 1 messages with them\n")


async def test_a_prune_that_is_killed_is_finished_by_the_next(cli: Cli, stall: Path, vhost: str) -> None:
    cli("apply", VERSION="old", MANY="20")
    cli("apply")
    command = [sys.executable, "stall.py", "topology", "prune", "--yes"]
    async with await aio_pika.connect(vhost) as connection:
        with subprocess.Popen(command, cwd=stall, env=environment(vhost), stdout=subprocess.DEVNULL) as operator:
            with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                async with asyncio.timeout(WITHIN):
                    while True:
                        channel = await connection.channel()
                        for number in range(20):
                            await channel.declare_queue(f"kitchen.serve_{number}", passive=True)
                        await channel.close()
            operator.send_signal(signal.SIGKILL)
    done = cli("prune", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(cli("--json").stdout)["left"] == []
    assert cli("apply").stdout.endswith("0 of them new\n")


async def test_a_queue_with_other_arguments_is_one_line_and_the_rest_is_declared(cli: Cli, vhost: str) -> None:
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.declare_queue("kitchen.serve_0", durable=True, arguments={"x-queue-type": "classic"})
    done = cli("apply", VERSION="old")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kitchen.serve_0: PRECONDITION_FAILED")
    assert "declared queue kitchen.cook" in done.stdout


def test_without_a_broker_it_shows_the_code_and_refuses_the_rest(cli: Cli) -> None:
    shown = cli(url="")
    assert shown.returncode == 0
    assert "queue kitchen.cook" in shown.stdout
    assert "this is what the code declares, and no more is known" in shown.stdout
    for command in ("apply", "prune"):
        for url in ("", "memory://"):
            done = cli(command, url=url)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
