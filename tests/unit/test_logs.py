"""Logs: where they go, how they read, and that no text can forge a line."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bus import logs

from .forked import FORKS, forked


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


class Terminal(io.TextIOWrapper):
    """A stream that says whether it is a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def written(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]


def test_the_library_writes_to_its_hosts_logging_and_configures_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logs.logger().info("handler stopped", handler="shop.work", error="bad\nline")
        logs.logger().debug("never mind")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("tidegate", "INFO")
    assert record.getMessage() == r"event=handler stopped handler=shop.work error=bad\nline"
    assert not structlog.is_configured()


@pytest.fixture
def _levels() -> Iterator[None]:
    loggers = [logging.root, *map(logging.getLogger, (*logs.NOISY, logs.TOLD))]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("_levels")
def test_what_libraries_log_is_a_line_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    stream = Terminal()
    logs.configure("info", "json", stream)
    logging.getLogger("aiormq").log(35, "%s was\n%s", "it", "cancelled")
    told = json.loads(stream.written)
    assert (told["event"], told["level"], told["logger"]) == ("it was\ncancelled", "warning", "aiormq")


@pytest.mark.usefixtures("_levels")
@pytest.mark.parametrize(
    ("level", "told"),
    [("debug", ["debug", "info", "warning"]), ("info", ["info", "warning"]), ("warning", ["warning"])],
)
def test_the_level_is_that_of_what_handlers_log_too(
    monkeypatch: pytest.MonkeyPatch, level: str, told: list[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    stream = Terminal()
    logs.configure(level, "json", stream)
    for name in ("shop.payment", "aiormq.channel", "aio_pika", "asyncio"):
        for each in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(each, "charged")
    lines = [json.loads(line) for line in stream.written.splitlines()]
    assert [line["level"] for line in lines if line["logger"] == "shop.payment"] == told
    assert [line["level"] for line in lines if line["logger"] != "shop.payment"] == ["warning"] * 3


@pytest.mark.usefixtures("_levels")
def test_an_address_that_is_not_there_is_no_error_where_the_next_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    stream = Terminal()
    logs.configure("info", "json", stream)
    logging.getLogger("aiormq.connection").error("error when creating transport: %r", "::1")
    assert stream.written == ""


def test_what_the_host_makes_of_its_logging_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own, level = logging.NullHandler(), logging.root.level
    monkeypatch.setattr(logging.root, "handlers", [own])
    logs.configure("debug", "json", Terminal())
    assert (logging.root.handlers, logging.root.level) == ([own], level)


def test_a_hosts_own_structlog_is_used_where_there_is_one() -> None:
    seen: list[Any] = []

    def keep(_: Any, __: str, fields: Any) -> Any:
        seen.append(dict(fields))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    logs.logger().info("ack", id="one")
    assert seen == [{"event": "ack", "id": "one"}]


def test_json_is_one_object_a_line() -> None:
    stream = Terminal()
    logs.configure("info", "json", stream)
    logs.logger().info("ack", id="one", note="two\nlines \u2028 é", odd=object)
    logs.logger().warning("retry", delay=1.5)
    first, second = map(json.loads, stream.written.rstrip("\n").split("\n"))
    assert first["event"] == "ack"
    assert first["level"] == "info"
    assert first["note"] == "two\nlines \u2028 é"
    assert first["timestamp"].endswith("Z")
    assert first["odd"] == "<class 'object'>"
    assert (second["level"], second["delay"]) == ("warning", 1.5)


@pytest.mark.parametrize("value", ["no \udcff here", 1 << 80, float("nan"), {("a",): 1}, b"\xff"])
def test_whoever_logs_does_not_fail_for_what_is_logged(value: Any) -> None:
    for format in ("json", "text"):
        stream = Terminal()
        logs.configure("info", format, stream)
        logs.logger().info("ack", value=value)
        assert "ack" in stream.written


def test_text_is_one_line_whatever_is_in_it() -> None:
    stream = Terminal()
    logs.configure("info", "text", stream)
    logs.logger().info("ack\x1b[2J", note="two\nlines", more="\x9b1m", mark="\u2028")
    (line,) = stream.written.splitlines()
    assert r"ack\x1b[2J" in line
    assert r"two\nlines" in line
    assert r"\x9b1m" in line
    assert r"\u2028" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    ("format", "terminal", "is_json"),
    [
        ("auto", True, False),
        ("auto", False, True),
        ("json", True, True),
        ("json", False, True),
        ("text", True, False),
        ("text", False, False),
    ],
)
def test_it_reads_well_on_a_terminal_and_is_json_elsewhere(format: str, terminal: bool, is_json: bool) -> None:
    stream = Terminal(terminal=terminal)
    logs.configure("info", format, stream)
    logs.logger().info("ack")
    assert stream.written.startswith("{") == is_json
    assert ("\x1b[" in stream.written) == (terminal and not is_json)


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_below_the_level_is_not_told(level: str, told: list[str]) -> None:
    stream = Terminal()
    logs.configure(level, "json", stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(logs.logger(), name)("it")
    assert [json.loads(line)["level"] for line in stream.written.splitlines()] == told


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_text_is_one_line_that_no_terminal_obeys_and_any_stream_takes(text: str) -> None:
    escaped = logs.escape(text)
    assert len(escaped.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in escaped)
    assert escaped.encode().decode() == escaped


@pytest.mark.parametrize("text", ["", "plain", "größe — 注文", "a\\nb"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert logs.escape(text) == text


def test_only_texts_are_escaped() -> None:
    fields = {"event": "a\tb", "count": 3, "none": None, "plain": "x"}
    assert logs.escape_control(None, "info", fields) == {"event": r"a\tb", "count": 3, "none": None, "plain": "x"}


def log_into(stream: Any, format: str, *lines: str) -> int:
    """Log lines, the last one by `logging`, and return how many were lost."""
    before = logs.Lines.lost
    logs.configure("info", format, stream)
    for line in lines[:-1]:
        logs.logger().info(line)
    logging.getLogger("aiormq").warning(lines[-1])
    return logs.Lines.lost - before


@pytest.mark.parametrize("format", ["json", "text"])
def test_lines_that_nobody_reads_any_more_are_lost_and_whoever_logs_goes_on(
    monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stream:
        assert log_into(stream, format, "ack", "retry", "it was cancelled") == 3
    assert log_into(None, format, "ack", "it was cancelled") == 2


class Disk(io.RawIOBase):
    """A disk with little room."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.written += taken
        return len(taken)


def test_a_line_stands_alone_that_follows_those_for_which_there_was_no_room() -> None:
    for room in range(300):
        disk = Disk(room)
        logs.configure("info", "json", io.TextIOWrapper(io.BufferedWriter(disk)))
        logs.logger().info("ack")
        logs.logger().info("retry")
        disk.room = 1000
        logs.logger().info("dead letter")
        assert json.loads(disk.written.splitlines()[-1])["event"] == "dead letter"


class Telling(Disk):
    """A disk on which garbage is collected while it is written to, and tells of itself by a line."""

    lines: logs.Lines

    def write(self, data: Any) -> int:
        written = super().write(data)
        if b"first" in bytes(data):
            self.lines.msg(b"garbage")
        return written


def test_a_line_that_is_logged_while_one_is_written_waits_for_nobody() -> None:
    disk = Telling(1000)
    disk.lines = lines = logs.Lines(io.TextIOWrapper(disk))  # type: ignore[type-var]
    writing = threading.Thread(target=lambda: lines.msg(b"first"), daemon=True)
    writing.start()
    writing.join(10)
    assert disk.written.splitlines() == [b"first", b"garbage"]


@FORKS
def test_a_child_that_is_forked_while_a_line_is_written_writes_its_own() -> None:
    ours, theirs = os.pipe()
    begun, go_on = threading.Event(), threading.Event()

    class Slow(io.FileIO):
        def write(self, data: Any) -> int | None:
            if bytes(data) == b"parent\n":
                begun.set()
                go_on.wait()
            return super().write(data)

    with os.fdopen(ours, "rb") as read, io.TextIOWrapper(io.BufferedWriter(Slow(theirs, "w"))) as stream:
        lines = logs.Lines(stream)
        writing = threading.Thread(target=lambda: lines.msg(b"parent"), daemon=True)
        writing.start()
        begun.wait(20)
        try:
            with forked(lambda: lines.msg(b"child")):
                assert read.readline() == b"child\n"
        finally:
            go_on.set()
            writing.join(20)


MANY = """
import sys
from bus import logs

logs.configure("info", sys.argv[2], process=sys.argv[1])
for number in range(1500):
    logs.logger().info("ack", number=number, note="x" * (number % 15 * 250), end="end")
"""


@pytest.mark.parametrize("format", ["json", "text"])
def test_lines_of_processes_that_share_a_stream_are_never_torn_and_tell_their_process(format: str) -> None:
    ours, theirs = os.pipe()
    # as the container has it: what is written is not gathered
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", MANY, name, format], stderr=theirs, env=environment)
            )
        os.close(theirs)
        with os.fdopen(ours) as stream:
            lines = stream.read().splitlines()
    if format == "json":
        found = [(told["process"], told["number"]) for told in map(json.loads, lines)]
    else:
        whole = re.compile(r"\d\d:\d\d:\d\d\.\d+ \[info +\] ack +end=end note=x* number=(\d+) process=(one|two)")
        found = [(match[2], int(match[1])) if (match := whole.fullmatch(line)) else (line, 0) for line in lines]
    assert sorted(found) == [(name, number) for name in ("one", "two") for number in range(1500)]
