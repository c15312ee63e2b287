"""A cluster of three nodes under a steady load, fault after fault: what was lost, twice, late, and for how long.

    python -m benchmarks.cluster                          every fault; BROKER=4.0 or 4.3 wants that version
    python -m benchmarks.cluster --only "rolling restart" --json

The nodes run with deploy/cluster.conf and deploy/advanced.config. One process publishes, two work; what was confirmed
must be handled by each of four handlers: a plain one, an ordered one, one whose retries wait at the broker, and one
that gives up and whose dead letters are replayed in the end. Exits 1 where anything was lost, or out of its order, was
not handled in time, or was dead-lettered though its handler does not give up on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from bus import TidegateError
from tests.broker.cluster import Cluster

from . import ledger
from .faults import FAULTS, Stage
from .ledger import Found
from .load import HANDLERS
from .operating import Operator, moved


SETTLED_WITHIN: Final = 180.0
LETTERS_WITHIN: Final = 400.0
"""Seconds for the letters in the end: what an operator had claimed who was cut off is free again after five minutes."""
WORKERS: Final = 2


@asynccontextmanager
async def process(kind: str, folder: Path, url: str, rate: float, number: int = 0) -> AsyncIterator[None]:
    """Run a part of the load meanwhile; it is up at once, and stopped by a signal."""
    environment = os.environ | {"BUS_URL": url}
    command = [sys.executable, "-m", "benchmarks.cluster.load", kind, str(folder), str(rate)]
    with (folder / f"{kind}{number}.log").open("w") as log:
        started = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=log
        )
        try:
            assert started.stdout is not None
            async with asyncio.timeout(60):
                assert await started.stdout.readline() == b"up\n", f"see {log.name}"
            yield
            assert started.returncode is None, f"it ended; see {log.name}"
            started.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await started.wait()
        finally:
            if started.returncode is None:
                started.kill()
                await started.wait()


async def settled(folder: Path, until: float, broken: list[str], *, mended: bool = False) -> None:
    """Wait until everything is handled that was stored until then; what is not in time is `broken`."""
    end = ledger.now() + SETTLED_WITHIN
    while left := ledger.missing(folder, until, mended=mended):
        if ledger.now() > end:
            broken.append(f"not handled within {SETTLED_WITHIN:g} s: {len(left)}, such as {left[:5]}")
            print(f"  {broken[-1]}", file=sys.stderr)
            return
        await asyncio.sleep(0.5)


async def every_fault(
    cluster: Cluster, folder: Path, rate: float, chosen: list[str], broken: list[str]
) -> tuple[dict[str, Found], dict[str, str]]:
    """Put the load on, and do one fault after the other; what goes wrong is added to `broken`."""
    stage, spans, told = Stage(cluster, Operator(cluster.url())), dict[str, tuple[float, float]](), dict[str, str]()
    async with AsyncExitStack() as stack:
        for number in range(WORKERS):
            await stack.enter_async_context(process("worker", folder, cluster.url(), rate, number))
        loading = await stack.enter_async_context(AsyncExitStack())
        await loading.enter_async_context(process("publisher", folder, cluster.url(), rate))
        await asyncio.sleep(5)
        for name in chosen:
            print(f"{name} …", file=sys.stderr, flush=True)
            began = ledger.now()
            told[name] = await FAULTS[name](stage)
            await asyncio.sleep(3)
            await settled(folder, ledger.now(), broken)
            spans[name] = began, ledger.now()
            so_far = ledger.found(folder, *spans[name])
            print(f"  {told[name]}; silence {so_far.longest_silence:.1f} s", file=sys.stderr, flush=True)
        await loading.aclose()
        await settled(folder, ledger.now(), broken)
        told["letters"] = await letters(stage.operator, folder)
        await settled(folder, ledger.now(), broken, mended=True)
        broken += [f"{handler} dead-lettered {move}" for handler, move in sorted(stage.operator.unexpected)]
    return {name: ledger.found(folder, *span) for name, span in spans.items()}, told


async def letters(operator: Operator, folder: Path) -> str:
    """Mend the handler, replay every letter until none is open, and return what became of them."""
    expected = {each.move for each in ledger.published(folder) if each.stored and ledger.rejected(each.move)}
    found = (moved(letter) for letter in await operator.letters())
    open_letters = Counter(move for handler, move in found if handler == "given_up")
    missing, twice = len(expected - set(open_letters)), sum(count > 1 for count in open_letters.values())
    (folder / "mended").touch()
    async with asyncio.timeout(LETTERS_WITHIN):
        while left := await operator.letters():
            try:
                await operator.replay(left)
            except TidegateError as error:
                print(f"  replaying: {error}", file=sys.stderr)
            await asyncio.sleep(1)
    return f"{len(open_letters)} open letters, {missing} missing, {twice} twice; all were replayed"


def table(results: dict[str, Found], told: dict[str, str], broken: list[str]) -> str:
    """Return the results as a table, and what else there is to tell."""
    head = ("fault", "stored", "refused", "lost", "twice", "out of order", "worst publish", "longest silence")
    rows = [
        (
            name,
            *(str(count) for count in (found.stored, found.failed, found.lost, found.duplicates, found.out_of_order)),
            f"{found.worst_publish:.1f} s",
            f"{found.longest_silence:.1f} s",
        )
        for name, found in results.items()
    ]
    lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join([*lines, "", *(f"{name}: {what}" for name, what in told.items()), *broken])


def main() -> int:
    """Run the faults, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FAULTS, help="a fault; may be given again")
    parser.add_argument("--rate", type=float, default=50.0, help="events a second, for each of four handlers")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    folder, cluster, broken = Path(tempfile.mkdtemp(prefix="tidegate-cluster-")), Cluster(), list[str]()
    try:
        cluster.start()
        version = cluster.nodes[0].version()
        print(f"RabbitMQ {version}; the processes' logs are in {folder}", file=sys.stderr)
        results, told = asyncio.run(every_fault(cluster, folder, asked.rate, asked.only or list(FAULTS), broken))
    finally:
        cluster.close()
    if asked.json:
        faults = {name: asdict(found) | {"told": told[name]} for name, found in results.items()}
        report = {"version": version, "handlers": HANDLERS, "rate": asked.rate, "faults": faults}
        print(json.dumps({**report, "letters": told["letters"], "broken": broken}, indent=1))
    else:
        print(f"RabbitMQ {version}\n\n{table(results, told, broken)}")
    return int(bool(broken) or any(found.lost or found.out_of_order for found in results.values()))


if __name__ == "__main__":
    for name in ("tidegate", "aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.exit(main())
