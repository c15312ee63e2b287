"""What the library promises: its public names, documented."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bus
import bus.testing


PUBLIC = [
    "AccessRefused",
    "Ack",
    "AlreadyCompleted",
    "App",
    "Bus",
    "BusUnavailable",
    "Completion",
    "ConfigurationError",
    "Context",
    "Data",
    "DeadLetter",
    "Delivery",
    "Event",
    "Events",
    "Failure",
    "Fate",
    "Handler",
    "Letter",
    "Mark",
    "Message",
    "MessageTooLarge",
    "Middleware",
    "OpenStore",
    "Outcome",
    "Policy",
    "Process",
    "PublishError",
    "PublishRefused",
    "Queue",
    "Reject",
    "Release",
    "RequestFailed",
    "RequestTimeout",
    "Retry",
    "RetryAfter",
    "Seconds",
    "Service",
    "Settings",
    "SqliteStore",
    "SqliteTransaction",
    "Store",
    "SyncBus",
    "TidegateError",
    "TopologyMismatch",
    "Undecodable",
    "Unroutable",
    "breaker",
    "connect",
    "connect_sync",
    "exponential",
    "fixed",
    "immediate",
]
TESTING = ["NoVirtualTime", "NotSettled", "SimulationFailed", "Tester", "context", "simulate"]


def test_the_public_names_are_these() -> None:
    assert bus.__all__ == sorted(bus.__all__)
    assert bus.__all__ == PUBLIC
    assert bus.testing.__all__ == TESTING


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(bus, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if not method.startswith("_") and inspect.isfunction(function):
                assert function.__doc__, f"{name}.{method}"


@pytest.mark.parametrize("heavy", ["aio_pika", "typer", "pytest", "uvloop"])
def test_importing_the_library_loads_nothing_that_only_some_need(heavy: str) -> None:
    code = f"import sys, bus; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0


def test_the_pytest_plugin_loads_nothing_of_the_library_before_it_is_used(tmp_path: Path) -> None:
    file = tmp_path / "test_empty.py"
    code = "import sys\ndef test_it(): assert not {'bus.event', 'pydantic'} & set(sys.modules)\n"
    file.write_text(code)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
