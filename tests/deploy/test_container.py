"""The worker in its container: built and started as deploy/ says, in a plain folder, and by Docker where it runs."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .compose import DOCKERFILE, ROOT, environment, steps, workers
from .deployed import PASSWORD, Deployed
from .dockerfile import parse
from .folder import Folder
from .image import Container, Image, runs_here
from .running import Running


ORDER = {
    "order_id": "6f1c1b0e-7a3c-4f0e-9a51-0d6f0a3c2b11",
    "customer_id": "ada",
    "lines": [{"sku": "tea", "quantity": 1, "price": "4.20"}],
    "placed_at": "2026-11-24T12:00:00Z",
}

UNCOMPILED = """
from importlib.util import cache_from_source
from pathlib import Path
for path in Path().rglob("*.py"):
    if not Path(cache_from_source(path)).exists():
        print(path)
"""
"""Prints the modules of the container that would be compiled at each start."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the container's user may look into."""
    made = Path(tempfile.mkdtemp(prefix="tidegate-deploy-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=["folder", "image"] if runs_here() else ["folder"])
def built(request: pytest.FixtureRequest, folder: Path) -> Folder | Image:
    """The Dockerfile's last stage, built without Docker, and with it where its daemon runs."""
    return Image(DOCKERFILE, ROOT) if request.param == "image" else Folder(DOCKERFILE, ROOT, folder / "image")


@pytest.mark.timeout(300)  # what is installed is downloaded
def test_the_container_runs_on_the_composed_broker_and_ends_well(built: Folder | Image, folder: Path) -> None:
    secret = folder / "bus_password"
    secret.write_text(PASSWORD + "\n")
    worker, node = workers()["worker"], Deployed()
    variables = environment(worker, broker=node.port, secret=secret)
    assert built.run(["python", "-c", "import pip"], variables, secret).returncode == 1
    compiled = built.run(["python", "-c", UNCOMPILED], variables, secret)
    assert (compiled.returncode, compiled.stdout) == (0, ""), compiled.stderr
    with ExitStack() as stack:
        stack.callback(node.close)
        replicas: list[Running | Container] = []
        for _ in range(worker["deploy"]["replicas"]):
            here = {"BUS_HTTP": f"127.0.0.1:{free_port()}"}  # they share this machine's ports
            replicas.append(built.start(variables | here, secret))
            stack.callback(replicas[-1].close)

        # they start before their broker: they live, and are not ready
        for replica in replicas:
            until(lambda replica=replica: replica.run(health()).returncode == 0, replica)
            assert replica.run(ready()).returncode == 1
        node.start()
        for step in steps():
            done = built.run(step["command"], variables, secret)
            assert done.returncode == 0, done.stdout + done.stderr
        for replica in replicas:
            until(lambda replica=replica: replica.run(ready()).returncode == 0, replica)
        published = ["python", "app.py", "publish", "order.placed", json.dumps(ORDER)]
        assert replicas[0].run(published).returncode == 0
        until(lambda: any("reserve_stock" in replica.log() for replica in replicas), replicas[0])

        for replica in replicas:
            assert replica.stop() == 0, replica.log()
            ended_well(replica.log())


def ended_well(written: str) -> None:
    """Check what a worker wrote."""
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines[-1]["event"] == "worker stopped"
    assert [line for line in lines if line["level"] in ("error", "critical") or "exception" in line] == []
    assert PASSWORD not in written


def health() -> list[str]:
    """Return the command that the image is asked for its health with."""
    words = parse(DOCKERFILE.read_text())[-1].last("HEALTHCHECK").words
    assert words is not None
    return words


def ready() -> list[str]:
    """Return the command that compose asks with."""
    kind, *words = workers()["worker"]["healthcheck"]["test"]
    assert kind == "CMD"
    return [str(word) for word in words]


def until(holds: Callable[[], bool], running: Running | Container, within: float = 60) -> None:
    """Wait until it holds."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, running.log()
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])
