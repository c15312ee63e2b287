"""Logs: the library writes to its host's logging; only an app that hosts a worker configures any."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any, ClassVar, Final, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from .forks import in_child


NAME: Final = "tidegate"
NOISY: Final = ("aio_pika", "aiormq", "asyncio")
"""Libraries of which a program hears warnings alone, as they tell of each frame or of nothing."""
TOLD: Final = "aiormq.connection"
"""What it has to say is told by whoever connects; and one address of a host may be wrong where the next is right."""
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def logger() -> Any:
    """Return the logger of the library: the host's structlog where that is configured, else `logging`'s "tidegate"."""
    if structlog.is_configured():
        return structlog.get_logger(NAME)
    return structlog.wrap_logger(
        logging.getLogger(NAME),
        processors=[
            structlog.stdlib.filter_by_level,
            escape_control,
            structlog.processors.KeyValueRenderer(key_order=["event"], repr_native_str=False),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure(level: str, format: str, stream: TextIO | None = sys.stderr, *, process: str = "") -> None:
    """Configure structlog for a program that is a worker: JSON lines, or text that is pleasant to read on a terminal.

    `level` is debug, info, warning or error; `format` is json, text or auto (text on a terminal). Where several
    processes write to one place, each line tells its `process`, and is one write, so that it is never torn. What cannot
    be written is lost, and whoever logs goes on: see `Lines`.
    """
    terminal = stream is not None and stream.isatty()
    text = format == "text" or (format == "auto" and terminal)
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if text else "iso", utc=not text),
        structlog.processors.format_exc_info,
    ]
    if process:
        processors.append(_of(process))
    if text:
        processors += [escape_control, structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=12)]
        processors.append(_encoded(stream))
    else:
        processors.append(structlog.processors.JSONRenderer(_as_json))
    lines = Lines(stream)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    if not logging.root.handlers:
        # what libraries warn of would stand between the lines as it is
        logging.root.addHandler(Others())
        logging.root.setLevel(level.upper())
        for library in NOISY:
            logging.getLogger(library).setLevel(logging.WARNING)
        logging.getLogger(TOLD).setLevel(logging.CRITICAL)


class Lines:
    """A logger that writes lines to a stream. One that cannot be written is lost, and counted: nobody fails for it.

    A full disk, a terminal that was closed and a reader that has gone stop no worker, and keep no signal from it. It
    writes below the stream's buffer, which would keep what failed, and fail again when the program ends.
    """

    lost: ClassVar[int] = 0
    """Lines that this process could not write."""

    def __init__(self, stream: TextIO | None) -> None:
        self._raw: Any = None if stream is None else getattr(stream.buffer, "raw", stream.buffer)
        self._torn = False
        self._unlock()
        # no thread that has the lock is there to give it back
        in_child(self, Lines._unlock)

    def _unlock(self) -> None:
        # a collection of garbage may log while a line is written
        self._lock = threading.RLock()

    def msg(self, line: bytes) -> None:
        """Write a line, whatever becomes of it; never behind a part of another one."""
        with self._lock:
            left = memoryview((b"\n" if self._torn else b"") + line + b"\n")
            try:
                while left and self._raw is not None and (written := self._raw.write(left)):
                    left, self._torn = left[written:], written < len(left)
            except (OSError, ValueError):
                pass  # there is nowhere to tell it
            if left:
                Lines.lost += 1

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class Others(logging.Handler):
    """Writes what is logged by `logging` as lines of the worker's own format."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what cannot be written is told of as `logging` does."""
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            told = structlog.get_logger(record.name)
            told.log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:
            self.handleError(record)


def escape(text: str) -> str:
    """Escape control characters and lone surrogates: text forges no line, drives no terminal and can be written."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_control(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Escape control characters in every text of a log line."""
    for name, value in fields.items():
        if isinstance(value, str) and CONTROL.search(value):
            fields[name] = escape(value)
    return fields


def _of(process: str) -> structlog.typing.Processor:
    def name(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
        fields.setdefault("process", process)
        return fields

    return name


def _encoded(stream: TextIO | None) -> structlog.typing.Processor:
    encoding = getattr(stream, "encoding", None) or "utf-8"

    def encode(_: WrappedLogger, __: str, line: Any) -> bytes:
        return str(line).encode(encoding, "backslashreplace")

    return encode


def _as_json(fields: EventDict, **_: Any) -> bytes:
    import orjson

    try:
        return orjson.dumps(fields, default=str)
    except TypeError:  # a lone surrogate or a number over 64 bits: whoever logs must not fail for it
        return json.dumps({name: str(value) for name, value in fields.items()}).encode()
