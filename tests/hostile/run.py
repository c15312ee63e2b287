"""What became of hostile messages: each is accounted for, by the worker's journal, its log and its dead letters."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, Final

from bus import Letter
from bus.settings import Settings
from bus.transport.rabbitmq.dead_letters import _letter
from bus.transport.rabbitmq.transport import RabbitMQTransport

from .crew import LADDER, LATER, TOKEN
from .sending import Sent
from .watching import Crew, Told


SETTLED_WITHIN: Final = 60.0
HOPELESS: Final = {"too-large", "hops", "expired", "broker"}
"""Why a message is given up without a run, whoever it is for."""
REASONS: Final = {
    "fine": HOPELESS,
    "ladder": HOPELESS,
    "later": HOPELESS,
    "raises": HOPELESS | {"exhausted"},
    "rejects": HOPELESS | {"rejected"},
    "typed": HOPELESS | {"undecodable", "unknown-type", "unknown-version"},
}
ATTEMPTS: Final = {"fine": 1, "ladder": 3, "later": 2, "raises": 2, "rejects": 1, "typed": 1}
DELAYS: Final = {"ladder": LADDER, "later": LATER}
LOGGED: Final = {"worker starting", "worker started", "worker stopping", "worker stopped"} | {
    *("ack", "retry", "dead letter", "a reply was not sent; others like it are not told of")
}
"""What a worker says while nothing is wrong with it."""
HANDLED: Final = "handled"
WRONG: Final = "wrong"


class Wrong(AssertionError):
    """A message did not come to what it has to; it is kept, so that it can join the corpus."""

    def __init__(self, sent: Sent, why: object) -> None:
        super().__init__(f"{told_of([sent])}: {why}")
        self.sent = sent


@dataclass
class Ledger:
    """The dead letters of the crew, each read once."""

    transport: RabbitMQTransport
    seen: int = 0
    found: defaultdict[int, list[Letter]] = field(default_factory=lambda: defaultdict(list))

    async def read(self) -> Mapping[int, Sequence[Letter]]:
        """Read on, and return the letters since the last `forget`, by token."""
        desk = self.transport.dead_letters._desk("hostile")
        async with self.transport.dead_letters._streams.told():
            async with desk.lock:
                fold = await desk.look()
            new = list(islice(fold.rows.values(), self.seen, None))
            self.seen += len(new)
            async for row, entry in desk.entries(new):
                letter = _letter(fold, row, entry)
                self.found[token_of(letter)].append(letter)
        return self.found

    def forget(self) -> None:
        """Begin anew: what was read has been checked."""
        self.found = defaultdict(list)

    async def open(self) -> Counter[int]:
        """Read all open letters anew, as an operator does, and return how many there are to each token."""
        return Counter([token_of(letter) async for letter in self.transport.dead_letters.browse("hostile")])


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Ledger]:
    """Open a transport to look at dead letters with."""
    async with RabbitMQTransport.open(Settings(url=url)) as transport:
        # twenty-eight quorum queues: a busy broker may take longer for them than a worker waits at a time
        await transport._cascade.ready({}, asyncio.get_running_loop().time() + SETTLED_WITHIN)
        yield Ledger(transport)


def token_of(letter: Letter) -> int:
    """Return what a letter is known by."""
    token = TOKEN.search(letter.message.body)
    assert token is not None, letter
    return int(token[1])


def told_of(sent: Sequence[Sent]) -> str:
    """Return what is odd about messages, in short."""
    return "\n".join(f"{each.token} {each.handler} direct={each.direct} {each.hostile}" for each in sent[:10])


async def settled(ledger: Ledger, running: Crew, sent: Sequence[Sent]) -> Mapping[int, Sequence[Letter]]:
    """Wait until every message is handled or a dead letter, and return the letters."""
    end = time.monotonic() + SETTLED_WITHIN + len(sent) / 50
    while True:
        assert running.process.poll() is None, running.log.read_text()[-3000:]
        told, found = running.read(), await ledger.read()
        left = [each for each in sent if not told.done[each.token] and each.token not in found]
        unanswered = [
            each for each in sent if each.handler == "fine" and told.done[each.token] > told.answers[each.token]
        ]
        if not left and not unanswered:
            return found
        if time.monotonic() > end:
            raise Wrong((left or unanswered)[0], f"{len(left)} are neither handled nor dead letters: {told_of(left)}")
        await asyncio.sleep(0.5)


def check(
    sent: Sequence[Sent], told: Told, found: Mapping[int, Sequence[Letter]], wrong: list[Wrong] | None = None
) -> dict[int, str]:
    """Every message is accounted for, once; none was run too often, too early, or by another.

    Returns what each came to: that it was handled, or the reason of its dead letter. Raises the first that is wrong,
    or adds them to `wrong`, where that is given.
    """
    verdicts = {}
    for each in sent:
        try:
            verdicts[each.token] = _check(each, told, found.get(each.token, []))
        except AssertionError as error:
            verdicts[each.token] = WRONG
            if wrong is None:
                raise Wrong(each, error) from error
            wrong.append(Wrong(each, error))
    runs = sum(map(len, told.runs.values()))
    assert runs == sum(len(told.runs[each.token]) for each in sent), "something was run that was not sent"
    return verdicts


def _check(each: Sent, told: Told, dead: Sequence[Letter]) -> str:
    runs = told.runs[each.token]
    assert told.done[each.token] + len(dead) == 1, (told.done[each.token], dead)
    assert {run["handler"] for run in runs} <= {each.handler}, runs
    attempts = [run["attempt"] for run in runs]
    reason = dead[0].failure.reason if dead else HANDLED
    if reason == "broker":
        # it expired, and says itself why it died
        assert each.hostile.has("expiration"), dead
        assert each.hostile.has("x-first-death-reason"), dead
    if dead and (reason in HOPELESS or each.handler == "typed"):
        assert attempts == [], runs
        assert dead[0].failure.attempts == 0, dead
    else:
        assert attempts == list(range(1, ATTEMPTS[each.handler] + 1)), runs
    for letter in dead:
        assert reason in REASONS[each.handler], letter
        assert (letter.service, letter.handler) == ("hostile", each.handler), letter
        assert letter.message.body == each.body or b'"data"' in each.body, letter
    for first, second in pairwise(runs):
        assert second["at"] - first["at"] >= DELAYS.get(each.handler, 0), runs
        same = ("id", "type", "headers")
        assert [first[name] for name in same] == [second[name] for name in same], runs
    if each.handler == "fine":
        assert told.answers[each.token] == told.done[each.token], told.answers[each.token]
    return reason


def check_log(running: Crew) -> Counter[str]:
    """Read on in the log: every line is one object, none was forged, and nothing was wrong with a connection."""
    events: Counter[str] = Counter()
    for line in running.lines():
        assert "forged" not in line, line
        assert line["event"] in LOGGED, line
        events[line["event"]] += 1
    return events


async def replayed(ledger: Ledger, running: Crew, found: Mapping[int, Sequence[Letter]], most: int) -> int:
    """Replay letters whose handler fails again: the same message, attempts from one, one letter again."""
    chosen = [dead[0] for dead in found.values() if dead[0].failure.reason in ("exhausted", "rejected")][:most]
    before = {token: len(runs) for token, runs in running.read().runs.items()}
    ledger.forget()
    for letter in chosen:
        await ledger.transport.dead_letters.replay(letter)
    end = time.monotonic() + SETTLED_WITHIN
    while True:
        again = await ledger.read()
        left = [letter for letter in chosen if token_of(letter) not in again]
        if not left:
            break
        assert time.monotonic() < end, f"{len(left)} of {len(chosen)} replayed letters did not fail again: {left[0]}"
        await asyncio.sleep(0.3)
    told = running.read()
    for letter in chosen:
        token = token_of(letter)
        (now,) = again[token]
        assert now.failed_again >= 1
        same = ("id", "type", "body", "headers", "correlation_id", "hops", "source", "time", "content_type", "reply_to")
        for name in same:
            assert getattr(now.message, name) == getattr(letter.message, name), (name, letter, now)
        runs: list[dict[str, Any]] = told.runs[token][before[token] :]
        assert [run["attempt"] for run in runs] == list(range(1, ATTEMPTS[letter.handler] + 1)), (letter, runs)
    return len(chosen)
