"""How a survey is shown: names that anybody may have noted do not reach the terminal, nor a chart, as they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from bus.cli import mermaid, tree
from bus.topology import Part, Survey, Version

from .conftest import Run


AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
OTHER = {"version": "1.0", "worker": "host:1", "at": AT}
SURVEY = Survey(
    app="shop",
    broker="amqp://host:5672/",
    declared=(
        Part(kind="exchange", name="events", there=False),
        Part(
            kind="queue",
            name="stock.work",
            service="stock",
            bindings=(("events", "order.*"),),
            there=True,
            messages=7,
            consumers=1,
        ),
        Part(kind="step", name="stock.retry.500", service="stock", there=True, messages=2, onward="stock.return"),
        Part(kind="step", name="stock.retry.2000", service="stock", there=True, onward="stock.return"),
        Part(kind="letters", name="stock.dead", service="stock", there=False),
        Part(kind="delay", name="delay.0", service="delay", there=True, messages=3),
        Part(kind="record", name="tidegate.topology", there=True, messages=4),
    ),
    left=(
        Part(kind="binding", name="stock.work", service="stock", exchange="events", key="order.shipped", **OTHER),
        Part(kind="queue", name='x\x1b[2J"]; click', service="stock", there=True, messages=1, held="messages", **OTHER),
    ),
    versions=(Version(service="stock", version="1.0", worker="host:1", at=AT, ours=False, newest=False),),
)


def test_the_tree_has_counts_what_is_missing_and_what_is_left_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tree.show(SURVEY)
    shown = capsys.readouterr().out
    for line in (
        "shop at amqp://host:5672/",
        "retry steps stock.retry.500, ….2000: 2 ready",
        "queue stock.work: 7 ready, 1 consumer\n",
        "order.* ← events\n",
        "order.shipped ← events (left over)\n",
        "dead letters stock.dead: not there yet",
        "delay cascade: 3 ready",
        "record tidegate.topology: 4 entries",
        "stock: tidegate 1.0, host:1, 2026-11-24 12:00:00",
        "1 ready, no consumers (declared 2026-11-24 12:00:00 by host:1): it has messages: --with-messages",
        "exchange events: not there yet",
        "one worker may be several consumers of a queue",
    ):
        assert line in shown, shown
    assert "\x1b" not in shown


def test_the_flowchart_has_every_part_once_and_names_that_break_nothing() -> None:
    chart = mermaid.flowchart(SURVEY)
    lines = chart.splitlines()
    assert lines[0] == "flowchart LR"
    assert sum("stock.work" in line for line in lines) == 1
    assert any("order.*" in line and "-->" in line for line in lines)
    assert any("order.shipped" in line and "-." in line for line in lines)
    assert any(line.endswith(":::missing") for line in lines)
    assert any(line.endswith(":::left") for line in lines)
    assert "\x1b" not in chart
    assert '"];' not in chart


def test_two_ways_to_print_at_once_are_refused(run: Run) -> None:
    done = run("topology", "--json", "--mermaid")
    assert done.exit_code == 2


def test_how_to_print_may_stand_before_show_and_before_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUS_URL", raising=False)
    assert json.loads(run("topology", "--json", "show").stdout) == json.loads(run("topology", "show", "--json").stdout)
    assert run("topology", "--mermaid", "show").stdout.startswith("flowchart LR\n")
    assert run("topology", "--mermaid", "show", "--json").exit_code == 2
    done = run("topology", "--json", "apply")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--json and --mermaid are options of show" in done.stderr
