"""The pytest plugin: the `bus` fixture, over `@pytest.mark.bus(service, …, resources={…})`.

It is loaded in every pytest session of an environment that has Tidegate, so it imports the library only when a test
uses it, and needs nothing but pytest.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest


try:
    from pytest_asyncio import fixture
except ImportError:  # a project whose tests are anyio's, whose plugin runs this fixture too, or are not async at all
    fixture = pytest.fixture  # type: ignore[assignment]

if TYPE_CHECKING:
    from .tester import Tester


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers", "bus(*services, resources=None): the services that the `bus` fixture (a tidegate Tester) runs"
    )


@fixture
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Tester]:
    """A Tester of the services that the test's `@pytest.mark.bus(…)` names."""
    from ..errors import ConfigurationError
    from .tester import Tester

    mark = request.node.get_closest_marker("bus")
    if mark is None:
        pytest.fail("the `bus` fixture needs @pytest.mark.bus(service, …), which names the services", pytrace=False)
    try:
        made = Tester(*mark.args, **mark.kwargs)
    except (ConfigurationError, TypeError) as error:  # a TypeError is of a keyword that the mark does not take
        pytest.fail(f"@pytest.mark.bus(…): {error}", pytrace=False)
    async with made as tester:
        yield tester


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show what happened on the bus beside a failure."""
    report = yield
    if report.when == "call" and report.failed:
        for tester in filter(_is_tester, getattr(item, "funcargs", {}).values()):
            report.sections.append(("tidegate", tester.story()))
    return report


def _is_tester(value: Any) -> bool:
    """Tell whether it is a Tester, without an import: a project's own fixture may be a mock, even of a Tester."""
    module = sys.modules.get("bus.testing.tester")
    return module is not None and issubclass(type(value), module.Tester)
