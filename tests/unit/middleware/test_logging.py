"""One line for each outcome, after it was settled."""

from __future__ import annotations

import io
import logging as std
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger

from bus import Ack, DeadLetter, Event, Failure, Handler, Message, Outcome, Release, Retry, Service
from bus.middleware.logging import logging


NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = Failure(
    service="shop",
    handler="work",
    reason="rejected",
    error_type="ValueError",
    error="bad",
    traceback="",
    attempts=1,
    first_failed_at=NOW,
    last_failed_at=NOW,
    worker="test",
)


class Placed(Event, type="order.placed"):
    pass


class Played:
    attempt = 2
    first_failed_at = None
    message = Message(id="one", type="order.placed", version=1, source="/", time=NOW, body=b"", correlation_id="first")

    def __init__(self, redelivered: int = 0) -> None:
        self.redelivered = redelivered

    async def settle(self, outcome: Outcome) -> None: ...


@pytest.fixture(autouse=True)
def _unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def handler() -> Handler:
    service = Service("shop")

    @service.on(Placed, name="work")
    async def work(placed: Placed) -> None: ...

    return service.handlers[0]


async def told(outcome: Outcome, *, level: int = 0, redelivered: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """Let one delivery come to an outcome, and return the lines of the log."""
    seen = CapturingLogger()
    logger = structlog.wrap_logger(
        seen, processors=[], wrapper_class=structlog.make_filtering_bound_logger(level), context_class=dict
    )

    async def process(delivery: Any) -> Outcome:
        assert seen.calls == []  # nothing is told before it was settled
        return outcome

    assert await logging(logger)(handler(), process)(Played(redelivered)) is outcome
    return [(call.method_name, call.kwargs) for call in seen.calls]


COMMON = {"service": "shop", "handler": "work", "type": "order.placed", "id": "one", "correlation_id": "first"}


@pytest.mark.parametrize(
    ("outcome", "level", "fields"),
    [
        (Ack(), "info", {"event": "ack"}),
        (Release(), "info", {"event": "release"}),
        (
            Retry(timedelta(seconds=1.5), FAILURE, 3),
            "warning",
            {"event": "retry", "delay": 1.5, "error_type": "ValueError", "error": "bad"},
        ),
        (
            DeadLetter(FAILURE),
            "error",
            {"event": "dead letter", "reason": "rejected", "error_type": "ValueError", "error": "bad"},
        ),
    ],
)
async def test_an_outcome_is_one_line_with_its_level(outcome: Outcome, level: str, fields: dict[str, Any]) -> None:
    ((method, line),) = await told(outcome)
    assert 0 <= line.pop("duration") < 60
    assert (method, line) == (level, COMMON | {"attempt": 2} | fields)


async def test_a_message_that_came_before_says_so() -> None:
    ((_, line),) = await told(Ack(), redelivered=3)
    assert line["redelivered"] == 3


@pytest.mark.parametrize(
    ("level", "lines"), [(std.DEBUG, 4), (std.INFO, 4), (std.WARNING, 2), (std.ERROR, 1), (std.CRITICAL, 0)]
)
async def test_only_what_the_level_lets_through_is_told(level: int, lines: int) -> None:
    outcomes = [Ack(), Release(), Retry(timedelta(), FAILURE, 2), DeadLetter(FAILURE)]
    assert sum([len(await told(outcome, level=level)) for outcome in outcomes]) == lines


async def test_a_process_that_is_cancelled_is_no_outcome_and_not_told() -> None:
    seen = CapturingLogger()

    async def process(delivery: Any) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await logging(structlog.wrap_logger(seen, processors=[]))(handler(), process)(Played())
    assert seen.calls == []


async def test_without_a_logger_it_is_the_one_of_the_host(caplog: pytest.LogCaptureFixture) -> None:
    async def process(delivery: Any) -> Outcome:
        return DeadLetter(FAILURE)

    await logging()(handler(), process)(Played())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("tidegate", "ERROR")
    assert "reason=rejected" in record.getMessage()


@pytest.mark.parametrize("wrapper", [structlog.BoundLogger, structlog.make_filtering_bound_logger(std.INFO)])
async def test_any_kind_of_structlog_logger_of_the_host_will_do(wrapper: type[Any]) -> None:
    stream = io.StringIO()
    structlog.configure(wrapper_class=wrapper, logger_factory=structlog.PrintLoggerFactory(stream))

    async def process(delivery: Any) -> Outcome:
        return Ack()

    await logging()(handler(), process)(Played())
    assert "ack" in stream.getvalue()
    assert "order.placed" in stream.getvalue()


async def test_a_structlog_logger_upon_the_hosts_logging_will_do(caplog: pytest.LogCaptureFixture) -> None:
    structlog.configure(wrapper_class=structlog.stdlib.BoundLogger, logger_factory=structlog.stdlib.LoggerFactory())

    async def process(delivery: Any) -> Outcome:
        return DeadLetter(FAILURE) if caplog.records else Ack()

    with caplog.at_level(std.INFO):
        logged = logging()(handler(), process)
        await logged(Played())
        await logged(Played())
    assert [record.levelname for record in caplog.records] == ["INFO", "ERROR"]
