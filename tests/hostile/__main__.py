"""The run by hand: `python -m tests.hostile [messages [seed]]`, 20,000 messages on a private broker."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.broker.node import Node

from .run import EACH, addressed, check, check_log, crew, messages, opened, publish, replayed, settled


def main(amount: int, seeded: int) -> None:
    print(f"{amount:,} messages, seed {seeded}", flush=True)
    node = Node()
    try:
        node.start()
        with tempfile.TemporaryDirectory(prefix="tidegate-hostile-") as folder:
            asyncio.run(run(node.url(), Path(folder), amount, seeded))
    finally:
        node.close()


async def run(url: str, folder: Path, amount: int, seeded: int) -> None:
    began = time.monotonic()
    sent = addressed(messages(amount // EACH, seeded), amount, seeded)
    print(f"made in {time.monotonic() - began:.0f} s", flush=True)
    with crew(url, folder) as running:
        await running.started()
        began = time.monotonic()
        async with opened(url) as transport:
            for start in range(0, amount, 1000):
                await publish(url, sent[start : start + 1000])
            print(f"published in {time.monotonic() - began:.0f} s", flush=True)
            found = await settled(transport, running, sent)
            print(f"settled in {time.monotonic() - began:.0f} s", flush=True)
            check(sent, running.read(), found)
            again = await replayed(transport, running, found, 200)
        running.stop()
        told = running.read()
        reasons = Counter(letter.failure.reason for dead in found.values() for letter in dead)
        print(f"{sum(told.done.values()):,} handled, {len(found):,} dead letters: {dict(reasons)}, {again} replayed")
        print(f"runs: {sum(map(len, told.runs.values())):,}; log: {dict(check_log(running, amount))}")
        for look in told.memory:
            print(f"after {look['runs']:,} runs: {look['rss'] / 1024:.1f} MB, {look['objects']:,} objects")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20_000, int(sys.argv[2]) if sys.argv[2:] else random.randrange(1 << 32))
