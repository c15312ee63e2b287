"""The watchdog: what it says of a loop that stands, with times that the test makes up."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from bus import Event, Service, watchdog
from bus.metrics import text
from bus.testing import Tester
from bus.watchdog import HANDLING, Culprit, Watchdog, watching


COOK = Culprit("kitchen", "cook", "4711", "kitchen.py:9 in cook")
POUR = Culprit("bar", "pour", "4712", "bar.py:3 in pour")
INTERVAL = 0.25


class Ordered(Event, type="stall.ordered"): ...


class Looking:
    """A watchdog that looks at its times, and what it logs."""

    def __init__(self, lines: Any) -> None:
        self.now = self.cpu = 0.0
        self.who = COOK
        self.lines = lines
        self.dog = Watchdog(lambda: self.who, 0.0)

    def passes(self, seconds: float, *, beats: bool = False) -> None:
        """Let time pass, with a look at every interval."""
        for _ in range(round(seconds / INTERVAL)):
            self.now += INTERVAL
            if beats:
                self.dog.beat(self.now)
            self.dog.look(self.now, self.cpu)

    def stands(self, seconds: float, *, cpu: float = 0.0) -> None:
        """Let time pass in which the thread does not run either."""
        self.now += seconds
        self.cpu += cpu
        self.dog.look(self.now, self.cpu)

    def said(self, event: str) -> list[Any]:
        return [line["blocked"] for line in self.lines if line["event"] == event]


@pytest.fixture
def looking() -> Iterator[Looking]:
    with structlog.testing.capture_logs() as lines:
        yield Looking(lines)


def test_a_loop_that_goes_round_is_not_told_of(looking: Looking) -> None:
    looking.passes(600, beats=True)
    looking.passes(0.75)
    looking.passes(600, beats=True)
    assert looking.lines == []
    assert looking.dog.blocked is None


def test_who_blocks_it_is_told_while_it_does_ever_more_rarely_and_at_its_end(looking: Looking) -> None:
    looking.passes(10, beats=True)
    looking.passes(1.25)
    (line,) = looking.lines
    assert {**line, "told": ""} == {
        "event": "event loop blocked",
        "log_level": "warning",
        "service": "kitchen",
        "handler": "cook",
        "id": "4711",
        "at": "kitchen.py:9 in cook",
        "blocked": 1.0,
        "told": "",
    }
    assert looking.dog.blocked == (COOK, 1.0)
    looking.passes(199)
    assert looking.said("event loop blocked") == [1, 2, 4, 8, 16, 32, 64, 124, 184]
    looking.passes(0.25, beats=True)
    assert looking.said("event loop goes on") == [200.25]
    assert looking.dog.blocked is None
    looking.passes(1.25)
    assert looking.said("event loop blocked")[-1] == 1


def test_a_process_that_was_stopped_is_not_blamed_for_it(looking: Looking) -> None:
    looking.passes(10, beats=True)
    looking.stands(3600, cpu=INTERVAL)
    looking.passes(0.75)
    assert looking.lines == []
    looking.passes(0.5)
    assert looking.said("event loop blocked") == [1]
    looking.passes(0.25, beats=True)
    assert looking.said("event loop goes on") == [1.5]


@pytest.mark.parametrize("share", [0.98, 0.1])
def test_c_code_that_lets_no_thread_run_is_told_as_soon_as_one_runs_again(looking: Looking, share: float) -> None:
    looking.passes(10, beats=True)
    looking.stands(5, cpu=5 * share)
    assert looking.said("event loop blocked") == [4.75]


def test_of_c_code_that_was_over_before_a_thread_ran_the_length_is_told(looking: Looking) -> None:
    looking.passes(10, beats=True)
    looking.dog.beat(looking.now + 5)
    looking.stands(5, cpu=5)
    assert looking.said("event loop goes on") == [4.75]


def test_a_process_that_was_stopped_and_went_on_before_the_look_is_not_blamed(looking: Looking) -> None:
    looking.passes(10, beats=True)
    looking.dog.beat(looking.now + 3600)
    looking.stands(3600)
    looking.dog.beat(looking.now + 0.1)
    looking.stands(3600)
    looking.passes(10, beats=True)
    assert looking.lines == []


def test_what_one_handler_blocks_after_the_other_is_counted_for_each(looking: Looking) -> None:
    looking.passes(10, beats=True)
    looking.passes(2.25)
    looking.who = POUR
    looking.passes(3)
    told = text(looking.dog.metrics())
    assert 'tidegate_loop_blocked_seconds_total{service="kitchen",handler="cook"} 2\n' in told
    assert 'tidegate_loop_blocked_seconds_total{service="bar",handler="pour"} 3\n' in told
    assert 'tidegate_loop_blocked_seconds{service="kitchen",handler="cook"} 0' in told
    assert 'tidegate_loop_blocked_seconds{service="bar",handler="pour"} 5\n' in told
    looking.passes(0.5, beats=True)
    told = text(looking.dog.metrics())
    assert 'tidegate_loop_blocked_seconds_total{service="bar",handler="pour"} 3.25\n' in told
    assert 'tidegate_loop_blocked_seconds{service="bar",handler="pour"} 0\n' in told


def test_a_loop_that_was_never_blocked_has_metrics_all_the_same(looking: Looking) -> None:
    assert [line.split()[1:4:2] for line in text(looking.dog.metrics()).splitlines() if "TYPE" in line] == [
        ["TYPE", "counter"],
        ["TYPE", "gauge"],
    ]


def watchdogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "watchdog"]


async def test_the_thread_ends_with_the_watching() -> None:
    with watching([]):
        assert watchdogs() == ["watchdog"]
    assert watchdogs() == []


async def until_told(lines: Any) -> None:
    """Block the loop until the watchdog has said so."""
    until = time.monotonic() + 20
    while not lines and time.monotonic() < until:
        time.sleep(0.01)


async def test_what_blocks_outside_of_any_handler_is_told_by_its_place() -> None:
    with structlog.testing.capture_logs() as lines, watching([], threshold=0.04):
        await asyncio.sleep(0)
        await until_told(lines)
    assert lines[0]["event"] == "event loop blocked"
    assert f"{__file__}:" in lines[0]["at"]
    assert "handler" not in lines[0]


async def test_a_task_that_a_handler_starts_is_told_by_its_place_and_by_the_handler_where_python_knows() -> None:
    async def cook(lines: Any) -> None:
        HANDLING.set("kitchen.cook")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(until_told(lines))

    with structlog.testing.capture_logs() as lines, watching(["kitchen.cook"], threshold=0.04):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cook(lines))
    assert f"{__file__}:" in lines[0]["at"]
    assert lines[0].get("handler") == ("cook" if sys.version_info >= (3, 12) else None)


async def test_a_handler_that_blocks_a_test_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "THRESHOLD", 0.01)
    service, seen = Service("kitchen"), []

    @service.on(Ordered)
    async def cook(ordered: Ordered) -> None:
        time.sleep(0.1)
        seen.extend(watchdogs())

    with structlog.testing.capture_logs() as lines:
        async with Tester(service) as bus:
            await bus.publish(Ordered())
            await bus.settled()
    assert seen == []
    assert [line["event"] for line in lines if "loop" in line["event"]] == []
