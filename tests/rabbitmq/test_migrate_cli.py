"""`topology migrate` as a process: what it shows, what it refuses, and that it can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
WITHIN = 60
SHOP = """
import os
from bus import App, Event, Service

class Placed(Event, type="order.placed"):
    number: int

stock = Service("stock")

@stock.on(Placed, ordered_by="number" if os.environ.get("ORDERED") else None)
async def reserve(placed: Placed) -> None: ...

if __name__ == "__main__":
    App("shop", events="shop", services="shop").cli()
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, vhost: str) -> Cli:
    """Run a command of the version whose handler is ordered to its end."""
    (tmp_path / "shop.py").write_text(SHOP)
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}

    def run(*arguments: str, url: str = vhost, input: str = "", ordered: str = "1") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "shop.py", *arguments],
            cwd=tmp_path,
            env=bare | {"PYTHONPATH": str(ROOT), "BUS_URL": url, "ORDERED": ordered},
            capture_output=True,
            text=True,
            check=False,
            input=input,
            timeout=WITHIN,
        )

    return run


def test_l3_a_migration_shows_its_plan_asks_and_tells_what_it_did(cli: Cli, tmp_path: Path, vhost: str) -> None:
    assert cli("topology", "apply", ordered="").returncode == 0
    lines = "".join(f"{json.dumps({'number': number})}\n" for number in range(3000))
    assert cli("publish", "order.placed", "-", input=lines, ordered="").returncode == 0
    unasked = cli("topology", "migrate", "stock.reserve")
    assert unasked.returncode == 2
    assert "stock.reserve: 3000 messages, 0 consumers" in unasked.stdout
    assert "x-single-active-consumer: none -> True" in unasked.stdout
    assert "add --yes" in unasked.stderr
    process = subprocess.Popen(
        [sys.executable, "shop.py", "topology", "migrate", "stock.reserve", "--yes"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "BUS_URL": vhost, "ORDERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert any("moves what was in stock.reserve\n" in line for line in process.stderr)
    finally:
        process.kill()
        process.communicate()
    done = cli("topology", "migrate", "stock.reserve", "--yes")
    assert done.returncode == 0, done.stderr
    assert "a migration of it was begun and not ended" in done.stdout
    assert "migrate: stock.reserve has the arguments that the code declares; " in done.stdout
    again = cli("topology", "migrate", "stock.reserve", "--yes")
    assert (again.returncode, again.stderr) == (
        1,
        "nothing to migrate: stock.reserve has the arguments that the code declares\n",
    )
    shown = json.loads(cli("topology", "--json").stdout)
    (queue,) = [part for part in shown["declared"] if part["name"] == "stock.reserve"]
    # once more than once only what was stored and not acked when the process was killed
    assert 3000 <= queue["messages"] <= 3000 + 200


@pytest.mark.parametrize(
    ("url", "name", "told"),
    [
        ("memory://", "stock.reserve", "topology migrate moves a queue at a broker: set BUS_URL"),
        ("memory://", "stock.removed", "there is no handler 'stock.removed'; there are stock.reserve"),
    ],
)
def test_l3_a_migration_that_cannot_be_is_refused_in_a_line(cli: Cli, url: str, name: str, told: str) -> None:
    refused = cli("topology", "migrate", name, "--yes", url=url)
    assert refused.returncode == 2
    assert refused.stderr.startswith(told)
    assert refused.stderr.count("\n") == 1
