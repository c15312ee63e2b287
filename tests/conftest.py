"""What every test may use."""

from __future__ import annotations

import pytest
import structlog

from tests.broker.fixtures import (
    _vhosts,
    broker,
    own_broker,
    proxy,
    pytest_configure,
    pytest_unconfigure,
    vhost,
    vhost_name,
)


__all__ = ["_vhosts", "broker", "own_broker", "proxy", "pytest_configure", "pytest_unconfigure", "vhost", "vhost_name"]


@pytest.fixture(autouse=True)
def _logs_of_the_library() -> None:
    """Undo what a program that ran in an earlier test did to the logs: a test reads them where the library writes."""
    structlog.reset_defaults()
