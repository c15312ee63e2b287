"""One run in a process of its own: `python -m benchmarks.one PEER WORKLOAD URL TOTAL LEVEL`; prints JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys


if __name__ == "__main__":
    peer, workload, url, total, level = sys.argv[1:]
    module = importlib.import_module(f"benchmarks.peers.{peer}")
    result = asyncio.run(getattr(module, workload)(url, int(total), level))
    sys.stdout.write(json.dumps(result) + "\n")
