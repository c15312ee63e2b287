"""Fails unless tests ran on a real RabbitMQ, and none was skipped: `python scripts/ran.py REPORT`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report: Path) -> int:
    """Return 0 if the report shows tests on RabbitMQ and no skipped ones."""
    cases = list(ET.parse(report).iter("testcase"))
    skipped = [case for case in cases if case.find("skipped") is not None]
    real = [case for case in cases if "rabbitmq" in f"{case.get('classname')} {case.get('name')}".lower()]
    print(f"RabbitMQ tests: {len(real)} of {len(cases)} ran on a real broker")
    for case in skipped:
        print(f"skipped: {case.get('classname')}.{case.get('name')}")
    return 0 if real and not skipped else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
