"""The pytest plugin, in pytest sessions of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


SHOP = """
import pytest
from bus import Event, Service

class Placed(Event, type="order.placed"):
    number: int

shop = Service("shop")

@shop.on(Placed)
async def place(placed: Placed) -> None:
    if placed.number == 13:
        raise ValueError("unlucky")
"""


def session(folder: Path, code: str, mode: str, *more: str) -> str:
    (folder / "test_it.py").write_text(SHOP + code)
    options = [
        "-o",
        f"asyncio_mode={mode}",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "-p",
        "no:cacheprovider",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *options,
        "--strict-markers",
        "--rootdir",
        str(folder),
        *more,
        str(folder),
    ]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=folder).stdout


@pytest.mark.parametrize(("mode", "mark"), [("auto", ""), ("strict", "@pytest.mark.asyncio\n")])
def test_the_fixture_runs_the_services_of_the_mark(tmp_path: Path, mode: str, mark: str) -> None:
    told = session(
        tmp_path,
        f"""
{mark}@pytest.mark.bus(shop)
async def test_it(bus):
    await bus.publish(Placed(number=1))
    await bus.settled()
    assert len(bus.handled(place)) == 1
""",
        mode,
    )
    assert "1 passed" in told, told


def test_a_failure_shows_what_happened_on_the_bus(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
@pytest.mark.bus(shop)
async def test_it(bus):
    await bus.publish(Placed(number=13))
    await bus.settled()
    assert bus.dead_letters() == []
""",
        "auto",
    )
    assert "shop.place gave up (exhausted): ValueError: unlucky" in told, told


def test_a_failure_with_a_fixture_of_its_own_shows_what_happened_too(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
from bus.testing import Tester

@pytest.fixture
async def tester():
    async with Tester(shop) as tester:
        yield tester

async def test_it(tester):
    await tester.publish(Placed(number=13))
    await tester.settled()
    assert tester.dead_letters() == []
""",
        "auto",
    )
    assert "shop.place gave up (exhausted): ValueError: unlucky" in told, told


def test_a_mark_that_names_no_service_is_told_in_a_line(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
async def test_none(bus): ...

@pytest.mark.bus()
async def test_empty(bus): ...

@pytest.mark.bus("shop")
async def test_text(bus): ...

@pytest.mark.bus(shop, resource={})
async def test_keyword(bus): ...
""",
        "auto",
    )
    assert "needs @pytest.mark.bus(service" in told, told
    assert "@pytest.mark.bus(…): Tester() hosts no service" in told, told
    assert "@pytest.mark.bus(…): Tester(…) takes services, and 'shop' is a text: give the service itself" in told, told
    assert "@pytest.mark.bus(…): Tester.__init__() got an unexpected keyword argument 'resource'" in told, told
    assert ("tester.py" in told, "4 errors" in told) == (False, True), told


def test_another_event_loop_is_refused_in_one_line(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
import asyncio
from bus.testing import NoVirtualTime, Tester

class Other(asyncio.AbstractEventLoop): ...

async def test_it(monkeypatch):
    monkeypatch.setattr("bus.testing.virtual_time.asyncio.get_running_loop", lambda: Other())
    with pytest.raises(NoVirtualTime, match="asyncio's own event loop"):
        await Tester(shop).__aenter__()
""",
        "auto",
    )
    assert "1 passed" in told, told


def test_a_project_without_pytest_asyncio_runs_its_tests_and_anyios_have_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "pytest_asyncio.py").write_text("raise ModuleNotFoundError('there is none')")
    told = session(
        tmp_path,
        """
def test_sync(): ...

@pytest.mark.anyio
@pytest.mark.bus(shop)
async def test_it(bus):
    await bus.publish(Placed(number=1))
    await bus.settled()
    assert len(bus.handled(place)) == 1

@pytest.fixture
def anyio_backend():
    return "asyncio"
""",
        "auto",
        "-p",
        "no:asyncio",
    )
    assert "2 passed" in told, told


def test_a_test_on_another_loop_than_its_fixture_is_told_so(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.bus(shop)
class TestApart:
    async def test_publishing(self, bus):
        await bus.publish(Placed(number=1))

    async def test_settling(self, bus):
        await bus.settled()
""",
        "auto",
    )
    assert "2 failed" in told, told
    assert "bus.publish(…) comes on another event loop than the one that this Tester is open on" in told, told
    assert "bus.settled() comes on another event loop than the one that this Tester is open on" in told, told


def test_a_projects_own_bus_that_is_a_mock_is_left_alone(tmp_path: Path) -> None:
    told = session(
        tmp_path,
        """
from unittest.mock import MagicMock
from bus.testing import Tester

@pytest.fixture(params=[None, Tester])
def bus(request):
    return MagicMock(spec=request.param)

def test_it(bus):
    assert 1 == 2
""",
        "auto",
    )
    assert ("assert 1 == 2" in told, "2 failed" in told) == (True, True), told
