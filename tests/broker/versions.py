"""Runs tests on every version of RabbitMQ, and says of each what came of it, or why it did not run.

    python -m tests.broker.versions            the contract and the tests on RabbitMQ, on each version that can be had
    python -m tests.broker.versions --short    what depends most on the version, on those that are here already, but
                                               not on the one that the whole suite runs on

A version that did not run is no failure: it prints NOT RUN.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from .install import DEBIAN, NoBroker, at_hand, programs, remedy, version_of


ROOT: Final = Path(__file__).parents[2]
REPORTS: Final = ROOT / ".cache" / "versions"
ALL: Final = ("tests/contract", "tests/rabbitmq")
LONGEST: Final = 3600
CONTRACT: Final = "tests/contract/test_"
DEPENDENT: Final = (
    CONTRACT + "strangers.py::test_f1_a_retry_without_a_handler_is_a_letter_whatever_a_stream_cannot_take",
    CONTRACT + "dead_letters.py::test_f4_what_expires_in_its_queue_is_kept_with_what_the_broker_tells",
    CONTRACT + "request_strangers.py::test_r3_an_address_over_which_a_broker_ends_the_connection_costs_replies_alone",
    CONTRACT + "roles.py::test_s1_a_worker_that_may_declare_nothing_does_everything_and_says_nothing",
    CONTRACT + "links.py::test_l2_a_deleted_queue_is_declared_and_consumed_again",
)
"""Tests of what a version does in its own way (docs/versions.md): a few seconds each."""


def main(arguments: list[str]) -> int:
    """Return 1 if a version failed, 0 otherwise."""
    if arguments not in ([], ["--short"]):
        print(__doc__)
        return 2
    if arguments:
        with ThreadPoolExecutor() as pool:
            results = list(pool.map(short, DEBIAN))
    else:
        results = [whole(version) for version in DEBIAN]
    return 0 if all(results) else 1


def short(version: str) -> bool:
    """Run what depends on the version, if it is here; return False if that failed."""
    if version == suites():
        print(f"RabbitMQ {version}: the whole suite ran on it", flush=True)
        return True
    if at_hand(version) is None:
        return not_run(version, remedy(version))
    # the versions run side by side, so each is content with one process
    return ran(version, DEPENDENT, "-n", "0")


def whole(version: str) -> bool:
    """Run the contract and the tests on RabbitMQ, fetching the version if need be; return False if that failed."""
    os.environ["BROKER"] = version
    try:
        programs()
    except NoBroker as error:
        return not_run(version, str(error))
    return ran(version, ALL, "-n", "4")


def suites() -> str:
    """Return the version that the whole suite runs on, "" where there is none."""
    try:
        return version_of(programs())
    except NoBroker:
        return ""


def not_run(version: str, why: str) -> bool:
    """Say that a version did not run."""
    print(f"RabbitMQ {version}: NOT RUN ({why})", flush=True)
    return True


def ran(version: str, tests: tuple[str, ...], *options: str) -> bool:
    """Run tests on a version, and say what came of it."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    report, began = REPORTS / f"{version}.xml", time.monotonic()
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options, *tests]
    environment = os.environ | {"BROKER": version}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LONGEST
    )
    cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    took = f"in {time.monotonic() - began:.0f} s"
    if done.returncode == 0 and cases and not skipped:
        print(f"RabbitMQ {version}: PASSED {len(cases)} tests {took}", flush=True)
        return True
    print(done.stdout[-20_000:] + done.stderr[-2_000:])
    print(f"RabbitMQ {version}: FAILED {len(bad)} of {len(cases)} tests, {len(skipped)} skipped, {took}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
