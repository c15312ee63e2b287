"""Standard streams that are closed, full, or of another encoding: a line at most, and no traceback."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
import structlog

from bus import App
from bus.cli import main

from .conftest import Bury


Program = Callable[..., int]


class Full(io.RawIOBase):
    """A file on a disk that is full."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def program(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """Run the program with these arguments, as it is started from a shell, and return its exit code."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def start(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stall", *arguments])
        given = (sys.stdin, sys.stdout, sys.stderr)
        with pytest.raises(SystemExit) as ended:
            main(app)
        opened.extend(stream for stream in (sys.stdin, sys.stdout, sys.stderr) if stream not in given)
        assert isinstance(ended.value.code, int)
        return ended.value.code

    opened: list[TextIO] = []
    yield start
    for stream in filter(None, opened):
        stream.close()
    structlog.reset_defaults()


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize("arguments", [["publish", "stall.ordered"], ["dead", "import", "-"]], ids=str)
def test_a_closed_input_is_an_empty_one(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert program(*arguments) == 2
    assert capsys.readouterr().err in (
        "there is no event to publish: the input is empty\n",
        "there is no letter in it\nno letter was imported\n",
    )


@pytest.mark.usefixtures("transport")
def test_where_the_input_is_closed_there_is_nobody_to_ask(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert program("dead", "compact", "kitchen") == 2
    assert "There is no terminal to ask at: add --yes" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_what_is_written_to_a_closed_output_is_nobodys(
    program: Program, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    monkeypatch.setattr(sys, closed, None)
    assert program("services") == 0
    assert program("services", "--json") == 0


@pytest.mark.parametrize(
    "arguments", [["services"], ["services", "--json"], ["--help"], ["dead", "export", "-"]], ids=str
)
def test_a_disk_that_is_full_is_one_line(
    program: Program,
    bury: Bury,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    bury()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full())))
    assert program(*arguments) == 1
    assert capsys.readouterr().err == "cannot write: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_does_not_have_is_written_by_its_number(
    program: Program, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.delenv("BUS_URL", raising=False)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    assert program("topology") == 0
    assert "stall.ordered \\u2190 events" in written.getvalue().decode(encoding)
