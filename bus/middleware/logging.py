"""One log line for each outcome, written after it was settled."""

from __future__ import annotations

from typing import Any, Final

from .. import clock
from ..logs import logger as default_logger
from ..outcome import Ack, DeadLetter, Failure, Outcome, Release, Retry
from ..service import Handler, Middleware, Process
from ..transport import Delivery


NAMES: Final[dict[type[Any], str]] = {Ack: "ack", Retry: "retry", DeadLetter: "dead letter", Release: "release"}
NUMBERS: Final = {"info": 20, "warning": 30, "error": 40}
LEVELS: Final[dict[type[Any], str]] = {Ack: "info", Retry: "warning", DeadLetter: "error", Release: "info"}


def logging(logger: Any = None) -> Middleware:
    """Return the middleware that logs: service, handler, type, id, correlation id, attempt, duration, outcome.

    A retry and a dead letter say why; a dead letter at level error, a retry at warning, all else at info. `logger` is
    a structlog logger, by default the one named "tidegate"; whoever hosts the library configures it.
    """
    chosen = logger if logger is not None else default_logger()

    def wrap(handler: Handler, process: Process) -> Process:
        log = chosen.bind(service=handler.service, handler=handler.name)
        told = _told(log)

        async def logged(delivery: Delivery) -> Outcome:
            started = clock.monotonic()
            outcome = await process(delivery)
            kind = type(outcome)
            if kind in told:
                getattr(log, LEVELS[kind])(
                    NAMES[kind], **_fields(delivery, outcome), duration=round(clock.monotonic() - started, 4)
                )
            return outcome

        return logged

    return wrap


def _told(log: Any) -> frozenset[type[Any]]:
    """Return the outcomes that the logger's level lets through, so that the fields of others are never gathered."""
    try:
        return frozenset(kind for kind, level in LEVELS.items() if log.is_enabled_for(NUMBERS[level]))
    except AttributeError:
        return frozenset(LEVELS)  # a plain BoundLogger of the host has no levels


def _fields(delivery: Delivery, outcome: Outcome) -> dict[str, object]:
    message = delivery.message
    fields: dict[str, object] = {
        "type": message.type,
        "id": message.id,
        "correlation_id": message.correlation_id,
        "attempt": delivery.attempt,
    }
    if delivery.redelivered:
        fields["redelivered"] = delivery.redelivered
    if isinstance(outcome, Retry):
        fields["delay"] = outcome.delay.total_seconds()
        fields |= _why(outcome.failure)
    elif isinstance(outcome, DeadLetter):
        fields["reason"] = outcome.failure.reason
        fields |= _why(outcome.failure)
    return fields


def _why(failure: Failure) -> dict[str, object]:
    return {"error_type": failure.error_type, "error": failure.error}
