"""The stage of each test: once on each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from .stage import Stage, staged


@pytest_asyncio.fixture(params=["memory", "rabbitmq"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A stage on each transport."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("vhost")
    async with staged(request.param, url) as opened:
        yield opened


@pytest_asyncio.fixture
async def rabbitmq(vhost: str) -> AsyncIterator[Stage]:
    """A stage on RabbitMQ, for what memory cannot keep (docs/contract.md)."""
    async with staged("rabbitmq", vhost) as opened:
        yield opened
