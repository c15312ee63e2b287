"""The run by hand: hostile messages in rounds through a private broker, in bounded memory, and the tally at the end.

    python -m tests.hostile --messages 100000 --seed 2026
    python -m tests.hostile --messages 20000 --choose    # and write what goes a way of its own into the corpus

`BROKER=4.3` runs it on that version. It ends with 1 when a message was lost, run twice or stuck, when a connection was
lost, or when the worker grew; the message is then written into `.cache/hostile/`, as a file for the corpus.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.broker.install import NoBroker
from tests.broker.node import Node

from . import corpus
from .choosing import Chosen
from .run import Ledger, Wrong, check, check_log, opened, replayed, settled
from .sending import Sent, addressed, messages, publish
from .watching import ROOT, Crew, crew


ROUND = 5_000
"""Messages that are under way at once; no more are held in memory."""
POOL = 20
"""Messages to each that the strategies make, which is slow: the others are crosses."""
MOST_GROWTH = 0.10
"""How much larger the worker may be at the end than after a fifth of the messages: what it keeps is bounded."""
FOUND = ROOT / ".cache" / "hostile"


class Run:
    """One run through one broker."""

    def __init__(self, node: Node, running: Crew, ledger: Ledger, chosen: Chosen | None) -> None:
        self.node, self.running, self.ledger, self.chosen = node, running, ledger, chosen
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.dead: set[int] = set()
        self.wrong: list[Wrong] = []
        self.log: Counter[str] = Counter()
        self.runs = 0
        self.replayed = 0

    async def round(self, sent: Sequence[Sent], *, last: bool) -> None:
        """Send messages, and see each of them end."""
        await publish(self.node.url(), sent)
        found = await settled(self.ledger, self.running, sent)
        already = len(self.wrong)
        verdicts = check(sent, self.running.read(), found, self.wrong)
        for wrong in self.wrong[already:]:
            keep(wrong)
        self.verdicts.update((each.handler, verdicts[each.token]) for each in sent)
        self.runs += sum(map(len, self.running.told.runs.values()))
        self.dead.update(found)
        if self.chosen is not None:
            for each in sent:
                await self.chosen.offer(each, verdicts[each.token])
        if last:
            self.replayed = await replayed(self.ledger, self.running, found, 200)
        self.ledger.forget()
        self.running.forget()
        self.log += check_log(self.running)

    async def end(self) -> None:
        """See that the letters are all there, once, and that nothing is left in any queue."""
        listed = await self.ledger.open()
        assert listed.keys() == self.dead, f"letters lost or made up: {listed.keys() ^ self.dead}"
        assert max(listed.values(), default=1) == 1, "a letter is open twice"
        self.running.stop()
        self.log += check_log(self.running)
        await self.empty()

    async def empty(self) -> None:
        """Wait for every queue to be empty; the broker counts every five seconds."""
        end = time.monotonic() + 30
        while True:
            rows = [line.split("\t") for line in self.node.ctl("list_queues", "name", "type", "messages").splitlines()]
            left = [row for row in rows if len(row) == 3 and row[1] != "stream" and row[2] not in ("0", "messages")]
            if not left:
                return
            assert time.monotonic() < end, f"stuck: {left}"
            await asyncio.sleep(1)

    def tell(self) -> None:
        """Print what became of all, and how the worker grew."""
        for handler in sorted({handler for handler, _ in self.verdicts}):
            each = {verdict: n for (whose, verdict), n in sorted(self.verdicts.items()) if whose == handler}
            print(f"{handler:8} " + ", ".join(f"{verdict} {n:,}" for verdict, n in each.items()))
        total = sum(self.verdicts.values())
        handled = total - len(self.dead)
        print(f"{total:,} messages: {handled:,} handled, {len(self.dead):,} dead letters, 0 lost, 0 stuck")
        print(f"{len(self.wrong)} came to something else than they have to")
        print(f"{self.runs:,} runs; {self.replayed} letters replayed; log: {dict(self.log)}")
        memory = self.running.told.memory
        for look in memory[:: max(len(memory) // 8, 1)]:
            print(f"after {look['runs']:,} runs: {look['rss'] / 1024:.1f} MB, {look['objects']:,} objects")
        print(f"this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at most")
        if len(memory) >= 10:
            early, late = memory[len(memory) // 5], memory[-1]
            for what in ("objects", "rss"):
                assert late[what] < early[what] * (1 + MOST_GROWTH), f"the worker grew: {what} {early} {late}"


async def run(node: Node, folder: Path, amount: int, seeded: int, chosen: Chosen | None) -> int:
    began = time.monotonic()
    with crew(node.url(), folder) as running:
        await running.started()
        async with opened(node.url()) as ledger:
            one = Run(node, running, ledger, chosen)
            kept = corpus.corpus()
            await one.round(list(corpus.addressed(kept, amount)), last=False)
            for first in range(0, amount, ROUND):
                size = min(ROUND, amount - first)
                sent = addressed(messages(-(-size // POOL), seeded + first), size, seeded + first, first)
                await one.round(sent, last=first + size >= amount)
                print(f"{first + size:,} after {time.monotonic() - began:.0f} s", flush=True)
            await one.end()
        one.tell()
        return len(one.wrong)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--choose", action="store_true", help="write what goes a way of its own into the corpus")
    given = parser.parse_args(arguments)
    try:
        node = Node()
    except NoBroker as error:
        print(error)
        return 2
    chosen = Chosen() if given.choose else None
    try:
        node.start()
        print(f"RabbitMQ {node.version()}: {given.messages:,} messages, seed {given.seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="tidegate-hostile-") as folder:
            wrong = asyncio.run(run(node, Path(folder), given.messages, given.seed, chosen))
    except Wrong as error:
        keep(error)
        return 1
    finally:
        node.close()
    if chosen is not None:
        print(f"{len(chosen.least())} messages of {chosen.offered:,} go every way: {chosen.write(corpus.FOLDER)} files")
    return 1 if wrong else 0


def keep(wrong: Wrong) -> None:
    print(str(wrong)[:3000])
    found = corpus.kept(wrong.sent, wrong.sent.hostile.body, "wrong", str(wrong)[:300])
    print("kept:", corpus.write(FOUND, found), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
