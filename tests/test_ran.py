"""What CI asks of the report: a run without RabbitMQ is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "scripts" / "ran.py"
HAD = '<properties><property name="broker" value="RabbitMQ"/></properties>'


@pytest.mark.parametrize(
    ("cases", "told", "code"),
    [
        ([HAD, ""], "1 of 2 tests ran on a real RabbitMQ", 0),
        (["", ""], "0 of 2 tests ran on a real RabbitMQ", 1),
        ([HAD, HAD + '<skipped message="NOT RUN: there is only Docker"/>'], "1 of 2 tests", 0),
        ([HAD + '<skipped message="NOT RUN: there is only Docker"/>'], "0 of 1 tests", 1),
        ([HAD, '<skipped message="another day"/>'], "another day", 1),
    ],
)
def test_a_run_without_rabbitmq_fails(tmp_path: Path, cases: list[str], told: str, code: int) -> None:
    report = tmp_path / "tests.xml"
    report.write_text("".join(["<testsuite>", *(f"<testcase>{case}</testcase>" for case in cases), "</testsuite>"]))
    done = subprocess.run([sys.executable, SCRIPT, report], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, told in done.stdout) == (code, True), done.stdout
