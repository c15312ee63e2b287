"""`dead`: to another handler, edited, at a rate, through an outage, into a file and out of it, erased."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from bus import App, BusUnavailable, Letter
from bus.cli import acting, editing
from bus.transport.memory import MemoryDeadLetters, MemoryTransport
from bus.transport.rabbitmq import desk

from .conftest import Bury, Run
from .test_dead import declare, ids


Editor = str


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands for the editor: each of its runs saves what `saves` says, and leaves what it was given."""
    program = tmp_path / "editor.py"
    program.write_text(
        "import pathlib, sys, stat\n"
        "here, file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "seen = here / 'seen'\n"
        "with seen.open('a') as told: told.write(f'{stat.S_IMODE(file.stat().st_mode):o} {file}\\n')\n"
        "(here / 'given').write_text(file.read_text())\n"
        "saves = sorted(here.glob('saves*'))\n"
        "if saves: file.write_text(saves[0].read_text()); saves[0].unlink()\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {program} {tmp_path}")
    monkeypatch.delenv("VISUAL", raising=False)
    return tmp_path


def test_a_letter_goes_to_another_handler(run: Run, bury: Bury, transport: MemoryTransport, app: App) -> None:
    declare(app, transport)
    bury()
    done = run("dead", "replay", "0-0", "--to", "till.charge")
    assert (done.exit_code, done.stdout) == (0, "replay: 1 of 1 done\n")
    assert done.stderr == "to till.charge, which handles stall.ordered\n"
    assert {name: len(queue.ready) for name, queue in transport.queues.items() if queue.ready} == {"till.charge": 1}


@pytest.mark.parametrize(
    ("to", "code", "told"),
    [
        ("till.nobody", 2, "--to 'till.nobody': there is no such handler; there are kitchen.cook, till.charge"),
        ("till.audit", 1, "kitchen/0-0: till.audit does not handle 'stall.ordered'; it handles *.cooked"),
    ],
)
def test_a_handler_that_cannot_take_it_is_told(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, to: str, code: int, told: str
) -> None:
    declare(app, transport)
    bury()
    done = run("dead", "replay", "0-0", "--to", to)
    assert done.exit_code == code
    assert told in done.stderr
    assert ids(run) == ["0-0"]


def test_a_letter_whose_handler_is_gone_says_how_to_redirect(run: Run, bury: Bury) -> None:
    bury()
    done = run("dead", "replay", "0-0")
    assert "`dead replay kitchen/0-0 --to SERVICE.HANDLER` sends it to another handler" in done.stderr


@pytest.mark.parametrize("rate", ["fast", "0/s", "50", "5/d", "-1/s"])
def test_a_rate_that_is_none_is_told(run: Run, bury: Bury, rate: str) -> None:
    bury()
    done = run("dead", "replay", f"--rate={rate}", "--yes")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "such as 50/s" in done.stderr
    assert ids(run) == ["0-0"]


def test_a_rate_is_kept(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    async def noted(self: MemoryDeadLetters, letter: Letter, *, to: str | None = None) -> None:
        times.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(MemoryDeadLetters, "replay", noted)
    for _ in range(4):
        bury()
    assert run("dead", "replay", "--rate", "20/s", "--yes").exit_code == 0
    assert [later - earlier >= 0.049 for earlier, later in pairwise(times)] == [True] * 3


def test_on_a_terminal_a_bar_shows_how_far_it_is(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        bury()
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(acting, "sys", SimpleNamespace(stdin=terminal, stderr=terminal))
    done = run("dead", "discard", "--yes")
    assert (done.exit_code, done.stdout) == (0, "discard: 3 of 3 done\n")
    assert "3/3" in done.stderr


def test_without_a_terminal_a_line_comes_now_and_then(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        bury()
    monkeypatch.setattr(acting, "LINE_EACH", 2)
    assert run("dead", "discard", "--yes").stderr == "discard: 2 of 5\ndiscard: 4 of 5\n"


def test_ctrl_c_ends_a_run_after_the_letter_under_way(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        bury()
    discard = MemoryDeadLetters.discard

    async def interrupted(self: MemoryDeadLetters, letter: Letter) -> None:
        if letter.id == "0-1":
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.05)
        await discard(self, letter)

    monkeypatch.setattr(MemoryDeadLetters, "discard", interrupted)
    done = run("dead", "discard", "--yes")
    assert (done.exit_code, done.stdout) == (130, "discard: 2 of 5 done\n")
    assert "stopped; the same command goes on where this one ended" in done.stderr
    assert ids(run) == ["0-2", "0-3", "0-4"]
    assert run("dead", "discard", "--yes").stdout == "discard: 3 of 3 done\n"


def test_a_run_goes_on_after_an_outage(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        bury()
    discard, failing = MemoryDeadLetters.discard, [True, True]

    async def away(self: MemoryDeadLetters, letter: Letter) -> None:
        if letter.id == "0-1" and failing:
            failing.pop()
            raise BusUnavailable("no broker answers", {})
        await discard(self, letter)

    monkeypatch.setattr(MemoryDeadLetters, "discard", away)
    monkeypatch.setattr(acting, "AGAIN", 0.01)
    done = run("dead", "discard", "--yes")
    assert (done.exit_code, done.stdout) == (0, "discard: 3 of 3 done\n")
    assert done.stderr == "the broker is away, trying again: no broker answers\n" * 2


def test_an_outage_that_lasts_ends_it_and_says_how_far_it_came(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        bury()
    discard = MemoryDeadLetters.discard

    async def away(self: MemoryDeadLetters, letter: Letter) -> None:
        if letter.id == "0-1":
            raise BusUnavailable("no broker answers", {})
        await discard(self, letter)

    monkeypatch.setattr(MemoryDeadLetters, "discard", away)
    monkeypatch.setattr(acting, "AGAIN", 0.01)
    monkeypatch.setattr(acting, "AWAY", 0.05)
    done = run("dead", "discard", "--yes")
    assert (done.exit_code, done.stdout) == (3, "discard: 1 of 3 done\n")
    assert done.stderr.endswith("no broker answers\n")


def test_what_somebody_else_took_meanwhile_is_told(run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        bury()
    discard = MemoryDeadLetters.discard

    async def both(self: MemoryDeadLetters, letter: Letter) -> None:
        await discard(self, letter)
        raise BusUnavailable("and then it went away", {})

    monkeypatch.setattr(MemoryDeadLetters, "discard", both)
    monkeypatch.setattr(acting, "AGAIN", 0.01)
    done = run("dead", "discard", "0-0")
    assert (done.exit_code, done.stdout) == (1, "discard: 0 of 1 done\n")
    assert "kitchen/0-0: it is not open any more" in done.stderr


def test_an_edited_body_is_sent_and_the_letter_is_closed_as_it_was(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, editor: Path
) -> None:
    declare(app, transport)
    bury()
    (editor / "saves").write_text('{"dish": "stew", "plates": 2}\n')
    done = run("dead", "edit", "kitchen/0-0")
    (queued,) = transport.queues["kitchen.cook"].ready
    assert (done.exit_code, done.stdout) == (0, f"edit: kitchen/0-0 was sent to kitchen.cook as {queued.message.id}\n")
    assert queued.message.body == b'{"dish": "stew", "plates": 2}'
    assert (editor / "given").read_text() == '{\n  "dish": "soup"\n}\n'
    mode, _, file = (editor / "seen").read_text().strip().partition(" ")
    assert (mode, Path(file).exists()) == ("600", False)
    assert ids(run) == []
    shown = run("dead", "show", "kitchen/0-0").stdout
    assert f"edited by this process, sent as {queued.message.id}" in shown
    assert '"dish": "soup"' in shown


def test_an_edit_of_one_field_leaves_the_numbers_of_the_others(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, editor: Path
) -> None:
    declare(app, transport)
    numbers = '"cents": 12345678901234567.89,\n  "till": 123456789012345678901234'
    bury(message={"body": f'{{"dish": "soup", {numbers}}}'.encode()})
    assert numbers in run("dead", "show", "0-0").stdout
    # what a reader of numbers would take for the same
    saved = f'{{\n  "dish": "soup",\n  {numbers}\n}}\n'.replace(".89", ".88")
    (editor / "saves").write_text(saved)
    assert run("dead", "edit", "0-0").exit_code == 0
    assert (editor / "given").read_text() == saved.replace(".88", ".89")
    assert transport.queues["kitchen.cook"].ready[0].message.body == saved.strip().encode()


@pytest.mark.parametrize("saved", [None, '{"dish":    "soup"}', "", "\n"])
def test_nothing_happens_where_nothing_was_changed(run: Run, bury: Bury, editor: Path, saved: str | None) -> None:
    bury()
    if saved is not None:
        (editor / "saves").write_text(saved)
    done = run("dead", "edit", "0-0")
    assert (done.exit_code, done.stdout) == (0, "nothing was changed: the letter stays as it is\n")
    assert ids(run) == ["0-0"]


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (
            '{"dish": 3, "plates": 0}',
            ["dish: Input should be a valid string", "plates: Input should be greater than 0"],
        ),
        ("{", ["Invalid JSON"]),
    ],
)
def test_what_does_not_fit_the_event_is_told_whole_and_kept(
    run: Run, bury: Bury, editor: Path, saved: str, told: list[str]
) -> None:
    bury()
    (editor / "saves").write_text(saved)
    done = run("dead", "edit", "0-0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert all(part in done.stderr for part in (*told, "nothing was sent"))
    kept = Path(done.stderr.partition("what you wrote is kept in ")[2].splitlines()[0])
    assert kept.read_text() == saved
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.unlink()
    assert ids(run) == ["0-0"]


def test_on_a_terminal_it_asks_to_edit_again(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, editor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(app, transport)
    bury()
    (editor / "saves1").write_text('{"dish": 3}')
    (editor / "saves2").write_text('{"dish": "stew"}')
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(editing, "sys", terminal)
    monkeypatch.setattr(acting, "sys", terminal)
    done = run("dead", "edit", "0-0", input="y\n")
    assert (done.exit_code, ids(run)) == (0, [])
    assert "edit it again? [y/N]" in done.stderr
    assert (editor / "given").read_text() == '{"dish": 3}'


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("", "set VISUAL or EDITOR"),
        ("no-such-editor-at-all", "'no-such-editor-at-all' cannot be run"),
        ("false", "ended with code 1"),
        ("rm", "the editor left no file"),
        ("/opt/Joe's Editor/ed", 'EDITOR="/opt/Joe\'s Editor/ed": No closing quotation'),
    ],
)
def test_without_an_editor_nothing_is_sent(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    bury()
    monkeypatch.setenv("EDITOR", program)
    monkeypatch.delenv("VISUAL", raising=False)
    done = run("dead", "edit", "0-0")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert told in done.stderr
    assert ids(run) == ["0-0"]


def test_what_no_editor_can_show_is_told(run: Run, bury: Bury, editor: Path) -> None:
    bury(message={"body": b"\xff\xfe"})
    done = run("dead", "edit", "0-0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "its body is no text" in done.stderr


def test_letters_go_into_a_file_and_come_back(run: Run, bury: Bury, tmp_path: Path) -> None:
    bury(message={"body": b"\xff\x00", "headers": {"tenant": "blå"}})
    bury("till", "charge", error="\x1b[2J")
    file = tmp_path / "letters.jsonl"
    before = json.loads(run("dead", "list", "--json").stdout)
    done = run("dead", "export", str(file))
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "export: 2 letters\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 2
    assert run("dead", "import", str(file)).stdout == "import: 0 letters; 2 were open already\n"
    run("dead", "discard", "--yes")
    assert ids(run) == []
    assert run("dead", "import", str(file)).stdout == "import: 2 letters\n"
    assert json.loads(run("dead", "list", "--json").stdout) == before
    assert "\\xff\\x00" in run("dead", "show", "kitchen/0-0").stdout


def test_export_writes_what_the_filters_match_to_standard_output(run: Run, bury: Bury) -> None:
    bury()
    bury("till", "charge")
    done = run("dead", "export", "-", "--service", "till")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["letter"] == "0-1"
    assert run("dead", "import", "-", input=line.encode()).stdout == "import: 0 letters; 1 were open already\n"


def test_export_overwrites_nothing(run: Run, bury: Bury, tmp_path: Path) -> None:
    bury()
    file = tmp_path / "precious"
    file.write_text("data")
    done = run("dead", "export", str(file))
    assert (done.exit_code, file.read_text()) == (2, "data")
    assert "export writes a new file" in done.stderr
    assert run("dead", "export", str(tmp_path / "new"), "0-9").exit_code == 1
    assert not (tmp_path / "new").exists()


def test_a_file_with_wrong_lines_is_not_imported_at_all(run: Run, bury: Bury, tmp_path: Path) -> None:
    bury()
    file = tmp_path / "letters.jsonl"
    run("dead", "export", str(file))
    run("dead", "discard", "0-0")
    good = json.loads(file.read_text())
    wrong = [
        "{",
        "[]",
        json.dumps(good | {"format": 2}),
        json.dumps(good | {"message": {}}),
        json.dumps(good | {"service": "bar"}),
        json.dumps(good | {"failure": good["failure"] | {"last_failed_at": "yesterday"}}),
        json.dumps(good | {"failure": good["failure"] | {"reason": "bad luck"}}),
        json.dumps(good | {"message": good["message"] | {"body": 7}}),
        json.dumps(good | {"entry": {"header": "!", "key": "kitchen.cook", "identity": "00"}}),
        json.dumps(good | {"entry": {"header": "AA==", "key": "kitchen.cook", "identity": "zz"}}),
    ]
    file.write_text("\n".join([json.dumps(good), "", *wrong]))
    done = run("dead", "import", str(file))
    assert (done.exit_code, done.stdout) == (2, "")
    told = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in told[:-1]] == [f"line {number}" for number in range(3, 13)]
    assert told[-1] == "no letter was imported"
    assert ids(run) == []


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_letters_is_told(run: Run, transport: MemoryTransport, tmp_path: Path, content: str) -> None:
    (tmp_path / "empty").write_text(content)
    done = run("dead", "import", str(tmp_path / "empty"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "there is no letter in it" in done.stderr
    assert run("dead", "import", str(tmp_path / "none")).exit_code == 2


def test_an_import_that_is_cut_off_says_where(
    run: Run, bury: Bury, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        bury(message={"id": f"m-{number}"})
    file = tmp_path / "letters.jsonl"
    run("dead", "export", str(file))
    run("dead", "discard", "--yes")
    restore = MemoryDeadLetters.restore

    async def cut(self: MemoryDeadLetters, service: str, packed: dict[str, dict[str, str]]) -> bool:
        if packed["message"]["id"] == "m-1":
            raise BusUnavailable("no broker answers", {})
        return await restore(self, service, packed)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryDeadLetters, "restore", cut)
        done = run("dead", "import", str(file))
    assert (done.exit_code, done.stdout) == (3, "import: 1 letters\n")
    assert "stopped at line 2; to import the file again goes on" in done.stderr
    assert run("dead", "import", str(file)).stdout == "import: 2 letters; 1 were open already\n"


def test_closed_letters_are_listed_until_a_compaction_erases_them(run: Run, bury: Bury) -> None:
    bury()
    bury()
    run("dead", "discard", "0-0")
    assert ids(run) == ["0-1"]
    assert ids(run, "--closed") == ["0-0", "0-1"]
    assert "(discarded by this process)" in run("dead", "list", "--closed").stdout
    assert "state                  closed" in run("dead", "show", "0-0").stdout
    asked = run("dead", "compact", "kitchen")
    assert (asked.exit_code, ids(run, "--closed")) == (2, ["0-0", "0-1"])
    assert "add --yes" in asked.stderr
    done = run("dead", "compact", "kitchen", "--yes")
    assert (done.exit_code, done.stdout) == (
        0,
        "compact: 1 closed letters of kitchen are erased, 1 open ones are left\n",
    )
    assert ids(run, "--closed") == ["0-1"]


def test_an_operator_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(desk.getpass, "getuser", nameless)
    assert desk.operator().startswith(f"uid {os.getuid()}@")
