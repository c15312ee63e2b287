"""The supervisor in virtual time: which host is tried when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from bus import AccessRefused
from bus.logs import logger
from bus.testing.virtual_time import VirtualTime
from bus.transport.rabbitmq import supervisor as supervisor_module
from bus.transport.rabbitmq.address import Address
from bus.transport.rabbitmq.channel import LinkLost
from bus.transport.rabbitmq.link import LinkRefused
from bus.transport.rabbitmq.supervisor import PATIENCE, STEADY, Backoff, Supervisor


class PlayedLink:
    """A link whose end the test decides on."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.closed = asyncio.Event()
        self.error: LinkLost | None = None
        self.blocked = ""

    def lose(self) -> None:
        self.error = LinkLost("cut")
        self.closed.set()

    async def aclose(self) -> None:
        pass


class Hosts:
    """Hosts that are connected to: `answers` tells how each does; `tries` has the time and the name of each try."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.tries: list[tuple[float, str]] = []

    @property
    def tried(self) -> list[str]:
        return [host for _, host in self.tries]

    @property
    def waits(self) -> list[float]:
        return [later - sooner for (sooner, _), (later, _) in pairwise(self.tries)]

    async def connect(self, address: Address, *, timeout: float = 10) -> PlayedLink:
        self.tries.append((asyncio.get_running_loop().time(), address.host))
        answer = self.answers[address.host]
        if answer == "swallows":
            await asyncio.sleep(timeout)
        if answer == "says no":
            raise LinkRefused("403 ACCESS_REFUSED")
        if answer != "lets in":
            raise LinkLost(f"{address.host} {answer}")
        return PlayedLink(address.host)

    @asynccontextmanager
    async def supervised(
        self, monkeypatch: pytest.MonkeyPatch, before: Supervisor | None = None
    ) -> AsyncIterator[Supervisor]:
        """Keep a link to them in virtual time."""
        monkeypatch.setattr(supervisor_module, "Link", self)
        addresses = [Address(host=host, port=1, vhost="/", login="a", password="b") for host in self.answers]
        supervisor = Supervisor(addresses, "publish", logger(), before)
        time = VirtualTime(lambda: False)
        with time.installed(), time.jumping():
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(supervisor.keep())
                yield supervisor
                keeping.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.01)


def test_delays_double_up_to_the_limit_and_each_is_shortened_by_chance() -> None:
    many = []
    for _ in range(200):
        backoff = Backoff(first=0.1, limit=2)
        many.append([backoff() for _ in range(8)])
    for number, longest in enumerate((0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2)):
        seen = [delays[number] for delays in many]
        assert longest / 2 <= min(seen) < max(seen) <= longest
        assert max(seen) - min(seen) > longest / 4


async def test_every_host_is_tried_before_a_wait_and_waits_grow_to_three_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(a="refuses", b="refuses", c="refuses")
    async with hosts.supervised(monkeypatch):
        await hosts.until(lambda: len(hosts.tries) >= 60)
    assert hosts.tried[:7] == ["a", "b", "c", "a", "b", "c", "a"]
    between = [wait for number, wait in enumerate(hosts.waits) if number % 3 == 2]
    within = [wait for number, wait in enumerate(hosts.waits) if number % 3 != 2]
    assert max(within) < 0.01
    assert 0.025 <= between[0] <= 0.06
    assert all(1.5 <= wait <= 3.1 for wait in between[8:])


async def test_a_host_that_swallows_everything_holds_up_the_others_for_two_seconds_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(hole="swallows", b="lets in")
    loop = asyncio.get_running_loop()
    async with hosts.supervised(monkeypatch) as supervisor:
        began = loop.time()
        assert (await supervisor.link()).host == "b"  # type: ignore[attr-defined]
        assert loop.time() - began < 2.5


async def test_a_slow_host_is_given_more_time_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(hole="swallows")
    async with hosts.supervised(monkeypatch):
        await hosts.until(lambda: len(hosts.tries) >= 8)
    assert [round(wait) for wait in hosts.waits[:3]] == [2, 4, 8]
    assert all(PATIENCE <= wait <= PATIENCE + 3.1 for wait in hosts.waits[3:])


async def test_after_a_loss_the_next_host_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(a="lets in", b="lets in", c="lets in")
    async with hosts.supervised(monkeypatch) as supervisor:
        for _ in range(4):
            link = await supervisor.link()
            await asyncio.sleep(STEADY + 1)
            link.lose()  # type: ignore[attr-defined]
        await supervisor.link()
    assert hosts.tried == ["a", "b", "c", "a", "b"]
    assert all(wait < STEADY + 1.2 for wait in hosts.waits)


async def test_a_broker_that_ends_every_link_at_once_is_not_stormed(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(a="lets in")
    async with hosts.supervised(monkeypatch) as supervisor:
        for _ in range(12):
            link = await supervisor.link()
            link.lose()  # type: ignore[attr-defined]
        await supervisor.link()
    assert all(1.5 <= wait <= 3.1 for wait in hosts.waits[8:])


async def test_a_definite_no_counts_once_every_host_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = Hosts(a="says no", b="lets in")
    async with hosts.supervised(monkeypatch) as supervisor:
        assert (await supervisor.link()).host == "b"  # type: ignore[attr-defined]
    hosts = Hosts(a="says no", b="refuses")
    async with hosts.supervised(monkeypatch) as supervisor:
        with pytest.raises(AccessRefused, match="403"):
            await supervisor.link()
    assert hosts.tried[:2] == ["a", "b"]


async def test_who_was_let_in_once_waits_out_a_no(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts = Hosts(a="lets in")
    async with hosts.supervised(monkeypatch) as supervisor:
        link = await supervisor.link()
        hosts.answers["a"] = "says no"
        link.lose()  # type: ignore[attr-defined]
        await hosts.until(lambda: len(hosts.tries) >= 5)
        assert "403" in supervisor.trouble
        hosts.answers["a"] = "lets in"
        await supervisor.link()
        assert supervisor.trouble == ""


async def test_who_was_let_in_by_another_link_waits_out_a_no_at_its_first_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = Hosts(a="says no")
    before = Supervisor([], "publish", logger())
    before._reached = True
    async with hosts.supervised(monkeypatch, before) as supervisor, asyncio.TaskGroup() as tasks:
        link = tasks.create_task(supervisor.link())
        await hosts.until(lambda: len(hosts.tries) >= 5)
        hosts.answers["a"] = "lets in"
    assert link.result().host == "a"  # type: ignore[attr-defined]


async def test_an_outage_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tidegate")
    hosts = Hosts(a="refuses", b="refuses")
    async with hosts.supervised(monkeypatch) as supervisor:
        for outage in range(2):
            await hosts.until(lambda outage=outage: len(hosts.tries) >= 20 * (outage + 1))  # type: ignore[misc]
            hosts.answers["b"] = "lets in"
            link = await supervisor.link()
            hosts.answers["b"] = "refuses"
            await asyncio.sleep(STEADY + 1)
            link.lose()  # type: ignore[attr-defined]
        await hosts.until(lambda: len(hosts.tries) >= 60)
    told = [record.getMessage().partition(" link")[0] for record in caplog.records]
    assert told == [
        "event=broker unreachable",
        "event=broker reachable",
        "event=connection lost",
        "event=broker reachable",
        "event=connection lost",
    ]
