"""Thousands of hostile messages through a real broker and a worker of its own process, and what became of each."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from bus import Fate, Letter, client
from bus.settings import Settings
from bus.transport import Transport
from bus.transport.rabbitmq import wire
from bus.transport.rabbitmq.address import addresses
from bus.transport.rabbitmq.channel import Channel, Parcel
from bus.transport.rabbitmq.link import Link

from .crew import LADDER, LATER, TOKEN
from .messages import Hostile, accepted


ROOT: Final = Path(__file__).parents[2]
SETTLED_WITHIN: Final = 60.0
EACH: Final = 5
"""How often each of the messages is sent: to other handlers, each time with a token of its own."""
AT_ONCE: Final = 100
HANDLERS: Final = ("fine", "raises", "ladder", "later", "rejects", "typed")
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


@dataclass(frozen=True)
class Sent:
    """One message as it was sent."""

    token: int
    handler: str
    hostile: Hostile
    body: bytes
    direct: bool


@dataclass
class Told:
    """What the journal says."""

    runs: defaultdict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    done: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    memory: list[dict[str, int]] = field(default_factory=list)


def messages(amount: int, seeded: int) -> list[Hostile]:
    """Return so many hostile messages, the same for the same seed."""
    made: list[Hostile] = []
    kept = settings(
        max_examples=amount,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @seed(seeded)
    @kept
    @given(accepted)
    def make(hostile: Hostile) -> None:
        made.append(hostile)

    make()
    return made


def addressed(hostile: Sequence[Hostile], amount: int, seeded: int) -> list[Sent]:
    """Return so many messages to send, each with a body that tells its token."""
    chance = random.Random(seeded)
    sent = []
    for token in range(amount):
        message = hostile[token % len(hostile)]
        # the broker itself sends what is published to queues by name to all that CC names; no copy of ours may
        direct = chance.random() < 0.25 and not (message.has("CC") or message.has("BCC"))
        sent.append(Sent(token, chance.choice(HANDLERS), message, marked(message.body, token), direct))
    return sent


def marked(body: bytes, token: int) -> bytes:
    """Return the body with a token in it; what is JSON stays JSON."""
    mark = b"#T%07d#" % token
    if b'"number": 1}' in body:
        return body.replace(b'"number": 1}', b'"number": 1, "token": "%s"}' % mark)
    if body[:1] == b"{" and body[-1:] == b"}":
        return body[:-1] + (b"," if len(body) > 2 else b'"number": 1, ') + b'"token": "%s"}' % mark
    return body + mark


async def publish(url: str, sent: Sequence[Sent]) -> None:
    """Send them as a stranger does, and see that the broker took every one."""
    (address,) = addresses(Settings(url=url))
    link = await Link.connect(address)
    channel = await link.channel(confirm=True)
    for start in range(0, len(sent), AT_ONCE):
        batch = channel.publish([_parcel(channel, each) for each in sent[start : start + AT_ONCE]])
        async with asyncio.timeout(30):
            fates = await batch.future
        wrong = [each for each, fate in zip(sent[start:], fates, strict=False) if fate is not Fate.STORED]
        assert not wrong, f"{channel.error}: {wrong[0]}"
    await link.aclose()


def _parcel(channel: Channel, sent: Sent) -> Parcel:
    exchange, key = ("", b"hostile." + sent.handler.encode()) if sent.direct else ("events", b"")
    if not sent.direct:
        word = b"typed.numbered" if sent.handler == "typed" else sent.handler.encode()
        key = word + b"." + sent.hostile.words if sent.hostile.words and sent.handler != "typed" else word
    # keys that are no text cannot be asked for, so the frame is made here
    named = key.decode("latin-1")
    payload = b"\x00\x3c\x00\x28\x00\x00" + wire.short(exchange) + wire.short_bytes(key) + b"\x01"
    frame = wire.HEAD.pack(wire.METHOD, channel.number, len(payload)) + payload + wire.END_OCTET
    channel._methods[exchange, named, True] = frame
    return Parcel(
        str(sent.token), exchange, named, sent.hostile.flags, sent.hostile.properties, sent.body, mandatory=True
    )


class Crew:
    """The worker's process, its journal and its log."""

    def __init__(self, url: str, folder: Path) -> None:
        self.journal, self.log = folder / "journal", folder / "log"
        self._read = 0
        self._rest = b""
        self.told = Told()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BUS_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from tests.hostile.crew import app; app.cli()", "run"],
                cwd=ROOT,
                env=environment
                | {"BUS_URL": url, "BUS_LOG_FORMAT": "json", "BUS_DEPLOY_GRACE": "0.01", "PYTHONPATH": str(ROOT)}
                | {"HOSTILE_JOURNAL": str(self.journal)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def read(self) -> Told:
        """Read on in the journal."""
        if self.journal.exists():
            with self.journal.open("rb") as journal:
                journal.seek(self._read)
                new = self._rest + journal.read()
                self._read = journal.tell()
            *lines, self._rest = new.split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        return self.told

    def _take(self, told: dict[str, Any]) -> None:
        if "done" in told:
            self.told.done[told["done"]] += 1
        elif "answered" in told:
            self.told.answers[told["answered"]] += 1
        elif told["handler"] == "memory":
            self.told.memory.append(told)
        else:
            self.told.runs[told["token"]].append(told)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Return what it logged; whatever is no object of JSON in one line is an error here."""
        for line in self.log.read_bytes().split(b"\n")[:-1]:
            read = json.loads(line)
            assert isinstance(read, dict)
            yield read

    async def started(self) -> None:
        """Wait for the worker to be consuming."""
        async with asyncio.timeout(30):
            while b'"worker started"' not in self.log.read_bytes():
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Stop it as a service manager does, and see that it ends well."""
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]


@contextmanager
def crew(url: str, folder: Path) -> Iterator[Crew]:
    """Run the worker; it is killed in the end if it still runs."""
    running = Crew(url, folder)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Transport]:
    """Open a transport to look at dead letters with."""
    async with client.transport(Settings(url=url)) as transport:
        yield transport


async def letters(transport: Transport) -> dict[int, list[Letter]]:
    """Return the open letters, by token."""
    found: dict[int, list[Letter]] = defaultdict(list)
    async for letter in transport.dead_letters.browse("hostile"):
        found[token_of(letter)].append(letter)
    return found


def token_of(letter: Letter) -> int:
    """Return what a letter is known by."""
    token = TOKEN.search(letter.message.body)
    assert token is not None, letter
    return int(token[1])


def told_of(sent: Sequence[Sent]) -> str:
    """Return what is odd about messages, in short."""
    return "\n".join(f"{each.token} {each.handler} direct={each.direct} {each.hostile}" for each in sent[:10])


async def settled(transport: Transport, running: Crew, sent: Sequence[Sent]) -> dict[int, list[Letter]]:
    """Wait until every message is handled or a dead letter, and return the letters."""
    end = time.monotonic() + SETTLED_WITHIN + len(sent) / 50
    while True:
        assert running.process.poll() is None, running.log.read_text()[-3000:]
        told, found = running.read(), await letters(transport)
        left = [each for each in sent if not told.done[each.token] and each.token not in found]
        unanswered = [
            each for each in sent if each.handler == "fine" and told.done[each.token] > told.answers[each.token]
        ]
        if not left and not unanswered:
            return found
        assert time.monotonic() < end, f"{len(left)} are neither handled nor dead letters: {told_of(left)}"
        await asyncio.sleep(0.5)


def check(sent: Sequence[Sent], told: Told, found: dict[int, list[Letter]]) -> None:
    """Every message is accounted for, once; none was run too often, too early, or by another."""
    for each in sent:
        runs, dead = told.runs[each.token], found.get(each.token, [])
        assert told.done[each.token] + len(dead) == 1, (told_of([each]), told.done[each.token], dead)
        assert {run["handler"] for run in runs} <= {each.handler}, (told_of([each]), runs)
        attempts = [run["attempt"] for run in runs]
        if dead and dead[0].failure.reason == "broker":
            # it expired, and says itself why it died
            assert each.hostile.has("expiration"), (told_of([each]), dead)
            assert each.hostile.has("x-first-death-reason"), (told_of([each]), dead)
        if dead and (dead[0].failure.reason in HOPELESS or each.handler == "typed"):
            assert attempts == [], (told_of([each]), runs)
            assert dead[0].failure.attempts == 0, (told_of([each]), dead)
        else:
            assert attempts == list(range(1, ATTEMPTS[each.handler] + 1)), (told_of([each]), runs)
        for letter in dead:
            assert letter.failure.reason in REASONS[each.handler], (told_of([each]), letter)
            assert (letter.service, letter.handler) == ("hostile", each.handler), (told_of([each]), letter)
            assert letter.message.body == each.body or b'"specversion"' in each.body, (told_of([each]), letter)
        for first, second in pairwise(runs):
            assert second["at"] - first["at"] >= DELAYS.get(each.handler, 0), (told_of([each]), runs)
            same = ("id", "type", "headers")
            assert [first[name] for name in same] == [second[name] for name in same], (told_of([each]), runs)
        if each.handler == "fine":
            assert told.answers[each.token] == told.done[each.token], each
    assert sum(map(len, told.runs.values())) == sum(len(told.runs[each.token]) for each in sent)


def check_log(running: Crew, sent: int) -> Counter[str]:
    """Every line is one object; none was forged, and nothing was wrong with a connection."""
    events: Counter[str] = Counter()
    for line in running.lines():
        assert "forged" not in line, line
        assert line["event"] in LOGGED, line
        events[line["event"]] += 1
    assert events["ack"] + events["dead letter"] >= sent - events["dead letter"]
    return events


async def replayed(transport: Transport, running: Crew, found: dict[int, list[Letter]], most: int) -> int:
    """Replay letters whose handler fails again: the same message, attempts from one, one letter again."""
    chosen = [dead[0] for dead in found.values() if dead[0].failure.reason in ("exhausted", "rejected")][:most]
    before = {token: len(runs) for token, runs in running.read().runs.items()}
    for letter in chosen:
        await transport.dead_letters.replay(letter)
    end = time.monotonic() + SETTLED_WITHIN
    while True:
        again = await letters(transport)
        # letters may share an id, and with it the count of what failed again
        left = [letter for letter in chosen if {x.id for x in again[token_of(letter)]} <= {letter.id}]
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
        runs = told.runs[token][before[token] :]
        assert [run["attempt"] for run in runs] == list(range(1, ATTEMPTS[letter.handler] + 1)), (letter, runs)
    return len(chosen)
