"""Every example runs and prints what its docstring says."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import httpx
import pytest

from bus import Ack, Events, Service, Settings
from bus.client import transport as open_transport
from bus.testing import Tester
from examples.fastapi_lifespan import OrderPlaced, current_bus, lifespan, web


ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "__init__.py")
TESTED_OTHERWISE = {"demo", "fastapi_lifespan", "test_a_service"}
PUBLISHERS = ("publish_from_script", "publish_sync")


def promised(path: Path) -> str | None:
    """Return what the docstring says that the example prints."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    found = re.search(r"^It prints:\n((?: {4}.*\n?)+)", text, re.MULTILINE)
    return dedent(found[1]).strip() if found else None


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
    command, full = (sys.executable, *arguments), {**clean, **environment}
    return subprocess.run(command, cwd=ROOT, env=full, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem not in TESTED_OTHERWISE], ids=lambda path: path.stem)
def test_an_example_prints_what_it_says(path: Path) -> None:
    ran = run(f"examples/{path.name}", BUS_URL="memory://")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == promised(path)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_a_publisher_prints_the_same_on_rabbitmq(name: str, vhost: str) -> None:
    path = ROOT / f"examples/{name}.py"
    ran = run(f"examples/{path.name}", BUS_URL=vhost)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == promised(path)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_a_publisher_without_a_bus_says_what_to_set(name: str) -> None:
    ran = run(f"examples/{name}.py")
    assert ran.returncode == 1
    assert "Set BUS_URL" in ran.stderr


def test_the_tests_of_a_service_pass() -> None:
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "examples/test_a_service.py")
    assert "3 passed" in ran.stdout, ran.stdout + ran.stderr


orders = Service("orders")


@orders.on(OrderPlaced)
async def take(order: OrderPlaced) -> None:
    """Take the order."""


async def test_a_web_route_publishes_on_the_bus_of_a_test() -> None:
    async with Tester(orders) as bus:
        web.dependency_overrides[current_bus] = lambda: bus
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client:
                answer = await client.post("/orders", json={"sku": "teapot", "quantity": 1})
                refused = await client.post("/orders", json={"sku": "teapot", "quantity": 0})
        finally:
            web.dependency_overrides.clear()
        await bus.settled()
        [placed] = bus.published(OrderPlaced)
        assert (answer.status_code, answer.json()) == (202, {"order_id": placed.order_id})
        assert refused.status_code == 422
        assert len(bus.handled(take)) == 1


async def test_a_web_app_connects_in_its_lifespan_and_publishes_on_rabbitmq(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUS_URL", vhost)
    [handler] = orders.handlers
    subscription = handler.subscription(Events([OrderPlaced]))
    async with (
        open_transport(Settings(url=vhost)) as transport,
        lifespan(web),
        httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client,
    ):
        await transport.declare([subscription])
        answer = await client.post("/orders", json={"sku": "teapot", "quantity": 1})
        assert answer.status_code == 202
        async with transport.consume(subscription, limit=1) as consumer:
            delivery = await anext(consumer)
            await delivery.settle(Ack())
    assert (delivery.message.id, delivery.message.source) == (answer.json()["order_id"], "/web")
