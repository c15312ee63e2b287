"""What every test may use."""

from __future__ import annotations

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
