"""`services`: what is hosted, and what nobody handles."""

from __future__ import annotations

import json

import pytest

from bus.cli import screen

from .conftest import Run


def test_the_table_has_every_handler_with_its_limits(run: Run) -> None:
    done = run("services")
    assert done.exit_code == 0
    assert "stall: 2 services, 4 handlers" in done.stdout
    cells = {line[0]: line[1:] for row in done.stdout.splitlines() if (line := row.replace("│", " ").split())}
    assert cells["cook"] == ["stall.ordered", "3", "attempts", "5", "s", "1", "2"]
    assert cells["note"][-2:] == ["16", "20"]
    assert "by subject" in done.stdout
    assert "after 2, 2 s" in done.stdout
    assert "Nobody handles: stall.eaten" in done.stdout


def test_what_looks_like_markup_stays(run: Run) -> None:
    assert "stall.[red]cooked" in run("services").stdout


def test_json_has_the_same(run: Run) -> None:
    told = json.loads(run("services", "--json").stdout)
    assert told["unhandled"] == ["stall.eaten"]
    assert told["handlers"][0] == {
        "service": "kitchen",
        "handler": "cook",
        "patterns": ["stall.ordered"],
        "queues": [],
        "retry": "3 attempts, after 2, 2 s",
        "timeout": 5.0,
        "concurrency": 1,
        "rate": None,
        "ordered_by": None,
        "idempotent": False,
        "prefetch": 2,
    }
    assert [handler["ordered_by"] for handler in told["handlers"]] == [None, None, "subject", None]
    assert [handler["handler"] for handler in told["handlers"]] == ["cook", "charge", "note", "audit"]


@pytest.mark.parametrize(("columns", "lines"), [("0", [150]), ("", [150]), ("wide", [150]), ("100", [100, 50])])
def test_the_width_is_what_columns_says_where_that_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str, lines: list[int]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    screen.show(screen.text("x" * 150))
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == lines
