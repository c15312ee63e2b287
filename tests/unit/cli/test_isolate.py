"""`run --isolate`: which services share a process, how it is started, and what it refuses."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog

from bus import ConfigurationError
from bus.cli import isolate
from bus.cli.isolate import compartments, handlers, own_command, working

from .conftest import Run


ROOT = Path(__file__).parents[3]
WITHIN = 30
KNOWN = ["billing", "orders", "shipping"]


@pytest.mark.parametrize(
    ("chosen", "groups", "processes"),
    [
        ([], [], {"billing": ("billing",), "orders": ("orders",), "shipping": ("shipping",)}),
        (["orders"], [], {"orders": ("orders",)}),
        (["orders", "orders"], [], {"orders": ("orders",)}),
        ([], ["money=billing,shipping"], {"money": ("billing", "shipping"), "orders": ("orders",)}),
        ([], ["a=billing", "b=shipping, orders"], {"a": ("billing",), "b": ("shipping", "orders")}),
        ([], ["billing=billing,orders"], {"billing": ("billing", "orders"), "shipping": ("shipping",)}),
        (["billing", "orders"], ["a=billing,orders"], {"a": ("billing", "orders")}),
    ],
)
def test_each_service_has_a_process_but_those_that_share_one(
    chosen: list[str], groups: list[str], processes: dict[str, tuple[str, ...]]
) -> None:
    assert compartments(KNOWN, chosen, groups) == processes


@pytest.mark.parametrize(
    ("chosen", "groups", "told"),
    [
        (["bar"], [], "there is no service 'bar'; there are billing, orders, shipping"),
        ([], ["a=billing,bar"], "--group 'a=billing,bar': there is no service 'bar'; there are billing, orders"),
        ([], ["a=billing,billing"], "'billing' is in group 'a' already"),
        ([], ["a=billing", "b=billing"], "--group 'b=billing': 'billing' is in group 'a' already"),
        ([], ["a=billing", "a=orders"], "there is a group 'a' already"),
        (["orders"], ["a=billing,orders"], "'billing' is not chosen by --service"),
        ([], ["supervisor=billing,orders"], "write --group NAME=billing,orders with another NAME"),
        ([], ["orders=billing,shipping"], "the service 'orders', which is not in it, has that name"),
        ([], ["billing"], "write --group NAME=SERVICE,SERVICE"),
        ([], ["=billing"], "write --group NAME=SERVICE,SERVICE"),
        ([], ["a=billing,"], "write --group NAME=SERVICE,SERVICE"),
        ([], ["A b=billing"], "group 'A b': a name has"),
    ],
)
def test_what_is_no_partition_is_refused(chosen: list[str], groups: list[str], told: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compartments(KNOWN, chosen, groups)
    assert told in str(raised.value)


def test_what_has_no_handler_gets_no_process_and_is_told_of() -> None:
    busy = {"orders": {"orders": ["orders.take"]}, "money": {"billing": [], "till": ["till.charge"]}}
    with structlog.testing.capture_logs() as logs:
        assert working(busy | {"pending": {"pending": []}}) == busy
    assert [(line["event"], line["services"]) for line in logs] == [("services without handlers", ["pending"])]


def test_where_nothing_has_a_handler_each_process_is_left_to_say_so() -> None:
    idle: dict[str, dict[str, list[str]]] = {"pending": {"pending": []}}
    with structlog.testing.capture_logs() as logs:
        assert working(idle) == idle
    assert logs == []


def test_no_service_takes_the_name_of_the_supervisors_lines() -> None:
    with pytest.raises(ConfigurationError, match="write --group NAME=supervisor with another NAME"):
        compartments(["orders", "supervisor"], [], [])
    assert compartments(["supervisor"], [], ["own=supervisor"]) == {"own": ("supervisor",)}


@pytest.mark.parametrize(
    ("original", "arguments", "command"),
    [
        (["python", "app.py", "run", "--isolate"], ["app.py", "run", "--isolate"], ["app.py", "run"]),
        (["python3", "-X", "dev", "-m", "shop", "run"], ["/x/shop.py", "run"], ["-X", "dev", "-m", "shop", "run"]),
        (["/usr/bin/python", "/usr/bin/shop"], ["/usr/bin/shop"], ["/usr/bin/shop", "run"]),
    ],
)
def test_a_process_is_started_as_this_program_was(
    monkeypatch: pytest.MonkeyPatch, original: list[str], arguments: list[str], command: list[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", arguments)
    assert own_command() == [sys.executable, *command]


def test_how_it_was_started_must_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "app.py", "serve"])
    monkeypatch.setattr(sys, "argv", ["app.py", "run", "--isolate"])
    with pytest.raises(ConfigurationError, match="cannot tell how"):
        own_command()


LASTING = """
import threading, time

from bus import App, Event, Service


class Ordered(Event, type="stall.ordered"): ...

kitchen = Service("kitchen")

@kitchen.on(Ordered)
async def cook(ordered: Ordered) -> None: ...

threading.Thread(target=time.sleep, args=(600,)).start()

if __name__ == "__main__":
    App("stall", events="stall", services="stall").cli()
"""


async def test_what_starts_when_it_is_imported_does_not_hold_up_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stall.py").write_text(LASTING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with asyncio.timeout(WITHIN):
        found = await handlers([sys.executable, str(tmp_path / "stall.py"), "run"], asyncio.Event())
    assert found == {"kitchen": ["kitchen.cook"]}


async def test_who_stops_all_processes_while_they_start_has_made_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = asyncio.Event()

    class Scout:
        def __init__(self) -> None:
            self.told: dict[str, object] = {}

        async def ended(self) -> int:
            asyncio.get_running_loop().call_later(0.05, stop.set)
            return -signal.SIGTERM

    @asynccontextmanager
    async def spawned(*_: object) -> AsyncIterator[Scout]:
        yield Scout()

    monkeypatch.setattr(isolate, "spawned", spawned)
    async with asyncio.timeout(WITHIN):
        assert await handlers([], stop) == -signal.SIGTERM
    assert stop.is_set()


@pytest.mark.parametrize("url", ["", "memory://"])
def test_processes_cannot_share_a_memory_bus(run: Run, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BUS_URL", url)
    done = run("run", "--isolate")
    assert done.exit_code == 2
    assert "needs a broker: the memory bus lives in one process" in done.stderr


def test_groups_are_for_processes(run: Run) -> None:
    done = run("run", "--group", "a=billing")
    assert done.exit_code == 2
    assert "--group goes with --isolate" in done.stderr
