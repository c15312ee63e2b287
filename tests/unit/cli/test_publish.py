"""`publish`: where events come from, what is checked before anything is sent, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bus import BusUnavailable, Fate, PublishRefused
from bus.message import Outgoing
from bus.transport.memory import MemoryTransport

from .conftest import Run


SOUP = '{"dish": "soup"}'


@pytest.fixture
def sent(transport: MemoryTransport) -> list[Outgoing]:
    """What was published."""
    found: list[Outgoing] = []
    transport.on_sent = found.append
    return found


def dishes(sent: list[Outgoing]) -> list[str]:
    return [json.loads(outgoing.message.body)["dish"] for outgoing in sent]


def test_it_publishes_the_argument_and_prints_the_id(run: Run, sent: list[Outgoing]) -> None:
    done = run("publish", "stall.ordered", SOUP)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"{sent[0].message.id}\n"
    assert (sent[0].message.type, sent[0].message.source, dishes(sent)) == ("stall.ordered", "/stall", ["soup"])


@pytest.mark.parametrize("argument", [[], ["-"]])
def test_it_reads_standard_input_line_by_line(run: Run, sent: list[Outgoing], argument: list[str]) -> None:
    done = run("publish", "stall.ordered", *argument, input='{"dish": "soup"}\n\n{"dish": "p\u2028ie"}\n')
    assert done.exit_code == 0
    assert done.stdout.split() == [outgoing.message.id for outgoing in sent]
    assert dishes(sent) == ["soup", "p\u2028ie"]


def test_it_reads_a_file(run: Run, sent: list[Outgoing], tmp_path: Path) -> None:
    file = tmp_path / "orders"
    file.write_text('{"dish": "soup"}\n{"dish": "pie"}')
    assert run("publish", "stall.ordered", "--file", str(file)).exit_code == 0
    assert dishes(sent) == ["soup", "pie"]


def test_one_event_may_take_many_lines(run: Run, sent: list[Outgoing]) -> None:
    assert run("publish", "stall.ordered", input=json.dumps({"dish": "soup", "plates": 2}, indent=2)).exit_code == 0
    assert dishes(sent) == ["soup"]


def test_nothing_is_published_if_a_line_is_wrong_and_every_field_is_told_with_its_line(
    run: Run, sent: list[Outgoing]
) -> None:
    done = run("publish", "stall.ordered", input=f'{SOUP}\n{{"plates": 0}}\n\nnonsense\n{SOUP}\n')
    assert (done.exit_code, done.stdout, sent) == (2, "", [])
    lines = done.stderr.splitlines()
    assert lines[0].startswith("line 2: the body is not a valid stall.ordered")
    assert lines[1:3] == ["  dish: Field required", "  plates: Input should be greater than 0"]
    assert lines[3].startswith("line 4:")
    assert lines[-1] == "nothing was published"


@pytest.mark.parametrize(
    ("arguments", "input", "told"),
    [
        (["stall.burnt", SOUP], None, "there is no event of type 'stall.burnt'; there are stall.cooked, stall.eaten"),
        (["stall.ordered", "{}"], None, "dish: Field required"),
        (["stall.ordered", '{\n"dish":\n}'], None, "Invalid JSON"),
        (["stall.ordered"], " \n", "the input is empty"),
        (["stall.ordered"], b'{"dish": "\xff"}', "the body is not a valid stall.ordered"),
        (["stall.ordered", SOUP, "--file", "orders"], None, "not from both"),
        (["stall.ordered", "--file", "/nowhere/orders"], None, "--file: "),
        (["stall.ordered", SOUP, "--delay", "soon"], None, "--delay 'soon': it takes seconds"),
        (["stall.ordered", SOUP, "--delay", "999d"], None, "longer than the longest there is"),
        (["stall.ordered", "--id", "1"], f"{SOUP}\n{SOUP}", "takes one event, it got 2"),
        (["stall.ordered", json.dumps({"dish": "x" * 2_000_000})], None, "raise BUS_MAX_MESSAGE_BYTES"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_exits_2(
    run: Run, sent: list[Outgoing], arguments: list[str], input: str | bytes | None, told: str
) -> None:
    done = run("publish", *arguments, input=input)
    assert (done.exit_code, done.stdout, sent) == (2, "", [])
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_the_options_reach_the_bus(run: Run, sent: list[Outgoing], transport: MemoryTransport) -> None:
    options = ["--delay", "0.01", "--required", "--id", "mine"]
    # nobody subscribes yet
    refused = run("publish", "stall.ordered", SOUP, *options)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "mine unroutable" in refused.stderr
    lost = run("publish", "stall.ordered", SOUP, "--to", "nowhere")
    assert lost.exit_code == 1
    assert "there is no queue 'nowhere'" in lost.stderr
    assert sent == []
    done = run("publish", "stall.ordered", SOUP, "--delay", "2m", "--id", "mine")
    assert (done.exit_code, done.stdout) == (0, "mine\n")
    assert (sent[0].message.id, sent[0].delay.total_seconds()) == ("mine", 120)


@pytest.mark.parametrize("url", ["", "memory://"])
def test_without_a_bus_that_outlives_it_it_refuses(run: Run, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BUS_URL", url)
    done = run("publish", "stall.ordered", SOUP)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "set BUS_URL" in done.stderr


def test_a_part_that_was_stored_is_told_apart(
    run: Run, transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: MemoryTransport, messages: list[Outgoing]) -> None:
        fates = {f"id-{number}": Fate.STORED if number == 1 else Fate.REFUSED for number in range(50)}
        raise PublishRefused("the queue is full", fates)

    monkeypatch.setattr(MemoryTransport, "publish", refuse)
    done = run("publish", "stall.ordered", input=f"{SOUP}\n{SOUP}\n")
    assert (done.exit_code, done.stdout) == (1, "id-1\n")
    assert "id-0 refused\nid-2 refused\n" in done.stderr
    assert "and 29 more\n" in done.stderr
    assert "the queue is full" in done.stderr.splitlines()[-1]


def test_no_broker_exits_3(run: Run, transport: MemoryTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(self: MemoryTransport, messages: list[Outgoing]) -> None:
        raise BusUnavailable("not confirmed within 10 s", {"1": Fate.UNKNOWN})

    monkeypatch.setattr(MemoryTransport, "publish", wait)
    done = run("publish", "stall.ordered", SOUP)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "", "not confirmed within 10 s (1 unknown)\n")
