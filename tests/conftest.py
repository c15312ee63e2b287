"""What every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.broker.fixtures import (
    _own_brokers,
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
    "_own_brokers",
    "_vhosts",
    "broker",
    "own_broker",
    "proxy",
    "pytest_configure",
    "pytest_unconfigure",
    "vhost",
    "vhost_name",
]


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Unconfigure structlog: a test that captured its events leaves it configured, and deaf to `caplog`."""
    yield
    structlog.reset_defaults()
