"""Logs: the library writes to its host's logging; only an app that hosts a worker configures any."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger


NAME: Final = "tidegate"
NOISY: Final = ("aio_pika", "aiormq", "asyncio")
"""Libraries of which a program hears warnings alone, as they tell of each frame or of nothing."""
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


def configure(level: str, format: str, stream: TextIO = sys.stderr, *, process: str = "") -> None:
    """Configure structlog for a program that is a worker: JSON lines, or text that is pleasant to read on a terminal.

    `level` is debug, info, warning or error; `format` is json, text or auto (text on a terminal). Where several
    processes write to one place, each line tells its `process`, and is one write, so that it is never torn.
    """
    text = format == "text" or (format == "auto" and stream.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if text else "iso", utc=not text),
        structlog.processors.format_exc_info,
    ]
    if process:
        processors.append(_of(process))
    factory: Any
    if text:
        processors += [escape_control, structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=12)]
        factory = structlog.WriteLoggerFactory(stream)
    else:
        processors.append(structlog.processors.JSONRenderer(_as_json))
        factory = structlog.BytesLoggerFactory(stream.buffer)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    if not logging.root.handlers:
        # what libraries warn of would stand between the lines as it is
        logging.root.addHandler(Others())
        logging.root.setLevel(level.upper())
        for library in NOISY:
            logging.getLogger(library).setLevel(logging.WARNING)


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


def _as_json(fields: EventDict, **_: Any) -> bytes:
    import orjson

    try:
        return orjson.dumps(fields, default=str)
    except TypeError:  # a lone surrogate or a number over 64 bits: whoever logs must not fail for it
        return json.dumps({name: str(value) for name, value in fields.items()}).encode()
