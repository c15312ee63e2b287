"""Chaos on a real broker: `python -m tests.chaos --minutes 10 --seed 1 [--cluster] [--json FILE]`.

Exits 1 when a promise was broken, and then leaves the folder with the ledgers and logs. The same seed gives the same
faults in the same order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.broker.install import NoBroker

from .faults import schedule
from .harness import attack
from .result import Result
from .table import HEADS, recoveries, totals


def main() -> int:
    """Attack, print the tables, and tell whether every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cluster", action="store_true", help="three nodes instead of one")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    chosen = parser.parse_args()
    if chosen.minutes <= 0:
        print(f"--minutes {chosen.minutes:g} is too short for any fault: give it more than 0")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="tidegate-chaos-"))
    print(f"seed {chosen.seed}, {chosen.minutes:g} minutes; ledgers and logs are in {folder}", flush=True)
    try:
        result = asyncio.run(attacked(chosen, folder))
    except NoBroker as error:
        print(error)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Stopped; nothing was reconciled")
        return 130
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result))
    show(result)
    if result["broken"]:
        print(f"A promise was broken; the ledgers and logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


async def attacked(chosen: argparse.Namespace, folder: Path) -> Result:
    """Attack, and end everything at SIGTERM as at Ctrl-C."""
    task, began = asyncio.current_task(), time.monotonic()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f}  {line}", flush=True)

    faults = schedule(chosen.seed, cluster=chosen.cluster)
    result = await attack(faults, chosen.minutes * 60, folder, say, cluster=chosen.cluster)
    result["about"][0]["seed"] = chosen.seed
    return result


def show(result: Result) -> None:
    """Print the tables, and examples of what was broken."""
    console = Console(width=140)
    for heads, rows in ((("", ""), totals(result)), (HEADS, recoveries(result))):
        table = Table(*heads[:1])
        for head in heads[1:]:
            table.add_column(head, justify="right")
        for row in rows:
            table.add_row(*(cell.replace("*", "").replace("`", "") for cell in row))
        console.print(table)
    for promise, examples in result["broken"].items():
        print(f"{promise}: {', '.join(examples)}")


if __name__ == "__main__":
    sys.exit(main())
