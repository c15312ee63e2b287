"""What every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import Phase, settings

from tests.broker.fixtures import (
    _told,
    _vhosts,
    broker,
    own_broker,
    proxy,
    pytest_configure,
    pytest_unconfigure,
    vhost,
    vhost_name,
)


__all__ = [
    "_told",
    "_vhosts",
    "broker",
    "own_broker",
    "proxy",
    "pytest_configure",
    "pytest_unconfigure",
    "vhost",
    "vhost_name",
]


# to explain a failure takes minutes, and a deadline fails on a busy machine; `--hypothesis-profile=thorough` tries more
# and a run must not fail for an example that the one before did not have, which only the thorough one looks for
settings.register_profile("quick", deadline=None, phases=set(Phase) - {Phase.explain}, derandomize=True)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=5_000, derandomize=False)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Unconfigure structlog: a test that captured its events leaves it configured, and deaf to `caplog`."""
    yield
    structlog.reset_defaults()
