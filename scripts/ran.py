"""Fails unless tests ran on a real RabbitMQ, and none was skipped: `python scripts/ran.py REPORT`.

A test that had a broker says so in the report (tests/broker/fixtures.py). What cannot run on a
machine says NOT RUN, and is told.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report: Path) -> int:
    """Return 0 if the report shows tests on RabbitMQ and no skipped ones, but for what is not to be had."""
    cases = list(ET.parse(report).iter("testcase"))
    why = {case: found.get("message", "") for case in cases if (found := case.find("skipped")) is not None}
    skipped = [case for case in why if not why[case].startswith("NOT RUN")]
    real = [case for case in cases if case not in why and case.find("properties/property[@name='broker']") is not None]
    print(f"{len(real)} of {len(cases)} tests ran on a real RabbitMQ")
    for case, reason in why.items():
        print(f"skipped: {case.get('classname')}.{case.get('name')}: {reason}")
    return 0 if real and not skipped else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
