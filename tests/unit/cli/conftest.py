"""The command line in this process, on a memory bus that a test can look into."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner, Result

from bus import App, DeadLetter, Failure, Letter, Message, Settings, client
from bus.cli import command_line
from bus.transport.memory import MemoryTransport


HERE = "tests.unit.cli.stall"
AGES = timedelta(hours=3)

Run = Callable[..., Result]
Bury = Callable[..., Letter]


@pytest.fixture
def app() -> App:
    """The stall."""
    return App("stall", events=f"{HERE}.events", services=f"{HERE}.services")


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> MemoryTransport:
    """The bus that every command of the test opens."""
    shared = MemoryTransport()

    @asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[MemoryTransport]:
        yield shared

    monkeypatch.setattr(client, "transport", opened)
    monkeypatch.setenv("BUS_URL", "amqp://stall/")
    return shared


@pytest.fixture
def run(app: App) -> Iterator[Run]:
    """Run a command line and return its exit code, standard output and standard error."""

    def invoke(*arguments: str, input: str | bytes | None = None, of: App = app) -> Result:
        result = CliRunner().invoke(command_line(of), arguments, input=input, env={"COLUMNS": "200"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    yield invoke
    structlog.reset_defaults()


@pytest.fixture
def bury(transport: MemoryTransport) -> Bury:
    """Put a dead letter there, as a worker does that gave up."""

    def bury(service: str = "kitchen", handler: str = "cook", age: timedelta = AGES, **given: Any) -> Letter:
        at = datetime.now(UTC) - age
        about = {"id": "m-1", "type": "stall.ordered", "body": b'{"dish":"soup"}'} | given.pop("message", {})
        told = {"reason": "exhausted", "error_type": "OSError", "error": "no gas", "attempts": 3} | given
        failure = Failure(
            service=service,
            handler=handler,
            first_failed_at=at - timedelta(minutes=1),
            last_failed_at=at,
            **{"worker": "host:1", "traceback": 'File "/srv/stove.py", line 7, in light\nOSError: no gas'} | told,
        )
        message = Message(**{"version": 1, "source": "/stall", "time": at} | about)
        transport.dead_letters.add(message, DeadLetter(failure))
        return transport.dead_letters.open()[-1]

    return bury
