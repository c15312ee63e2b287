"""Fixtures: one broker for the whole run, a virtual host for each test, and brokers that a test may kill."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from .install import NoBroker, programs, wanted
from .node import Node
from .proxy import Proxy


RUN = "TIDEGATE_TEST_RUN"
"""The folder, made by the first process of the run, in which its processes find the shared broker."""
BATCH = 25
BROKERS = frozenset({"broker", "own_broker", "three"})
"""The fixtures that start RabbitMQ."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that the processes of this run share; a version that cannot be had ends the run at once."""
    if not hasattr(config, "workerinput"):
        try:
            if wanted():
                programs()
        except NoBroker as error:
            raise pytest.UsageError(str(error)) from None
        os.environ[RUN] = tempfile.mkdtemp(prefix="tidegate-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the shared broker, if any test started it."""
    if hasattr(config, "workerinput") or RUN not in os.environ:
        return
    folder = Path(os.environ.pop(RUN))
    node = _restored(folder / "broker")
    if node is not None:
        node.close()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Shared:
    """The broker that all tests share; they must neither stop nor kill it."""

    node: Node

    @property
    def port(self) -> int:
        """Its AMQP port."""
        return self.node.port


@pytest.fixture(scope="session")
def broker() -> Shared:
    """The shared broker, started by the first test that wants it."""
    folder = Path(os.environ[RUN])
    with _locked(folder / "lock"):
        kept = folder / "broker"
        node = _restored(kept)
        if node is None:
            node = Node()
            node.start()
            kept.write_bytes(pickle.dumps(node))
            print(f"private broker: RabbitMQ {node.version()}")
            (folder / "version").write_text(node.version())
    return Shared(node)


@pytest.fixture(scope="session")
def _vhosts(broker: Shared, worker_id: str) -> Iterator[str]:
    def names() -> Iterator[str]:
        batch, gone = 0, list[str]()
        while True:
            made = [f"{worker_id}-{batch}-{number}" for number in range(BATCH)]
            # each virtual host that is left behind makes the next one dearer
            try:
                broker.node.delete_vhosts(gone)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"left behind: {gone[0]} and others: {error}")  # no fault of the test that wants a new one
            broker.node.add_vhosts(made)
            yield from made
            batch, gone = batch + 1, made

    return names()


@pytest.fixture
def vhost_name(_vhosts: Iterator[str]) -> str:
    """The name of a virtual host of the test's own on the shared broker."""
    return next(_vhosts)


@pytest.fixture
def vhost(broker: Shared, vhost_name: str) -> str:
    """The URL of a virtual host of the test's own on the shared broker."""
    return broker.node.url(vhost_name)


@pytest.fixture
def own_broker() -> Iterator[Node]:
    """A broker of the test's own, that it may stop and kill; what was killed is used no more."""
    node = Node()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest_asyncio.fixture
async def proxy(broker: Shared) -> AsyncIterator[Proxy]:
    """A proxy in front of the shared broker."""
    async with Proxy(broker.port).running() as running:
        yield running


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say in the report that a test had a broker: `scripts/ran.py` counts these."""
    yield
    if not BROKERS.isdisjoint(request.fixturenames):
        request.node.user_properties.append(("broker", "RabbitMQ"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _restored(kept: Path) -> Node | None:
    if not kept.exists():
        return None
    node = pickle.loads(kept.read_bytes())  # written by this run
    assert isinstance(node, Node)
    return node
