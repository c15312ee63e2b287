"""C3: what blocks the event loop is named while it does; a process for each service keeps its faults to itself."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from bus import Service
from bus import watchdog as watchdog_module
from bus.metrics import text

from .isolated import isolated
from .stage import WITHIN, Log, Placed, Stage


class Seen(list[Any]):
    """Log lines, for a handler that blocks the loop until one more of them names it here."""

    def wait(self, handler: str, seconds: float = WITHIN) -> None:
        before, until = len(self.naming(handler)), time.monotonic() + seconds
        while len(self.naming(handler)) == before and time.monotonic() < until:
            time.sleep(0.01)

    def naming(self, handler: str) -> list[Any]:
        """Return the lines that name a handler where it waits: a busy machine blocks the loop elsewhere too."""
        return [line for line in self.of("event loop blocked", handler) if line["at"].endswith("Seen.wait")]

    def of(self, event: str, handler: str) -> list[Any]:
        return [line for line in self if line["event"] == event and line.get("handler") == handler]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What the watchdog logs; it says so sooner than it does by default."""
    lines = Seen()

    def keep(_: Any, __: str, fields: Any) -> Any:
        lines.append(dict(fields))
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    monkeypatch.setattr("tests.contract.stage.THRESHOLD", 0.1)
    return lines


async def test_c3_a_handler_that_blocks_the_loop_is_named_while_it_does(stage: Stage, seen: Seen) -> None:
    service, done = Service("kitchen"), Log[int]()

    @service.on(Placed)
    async def cook(placed: Placed) -> None:
        seen.wait("cook")
        done.append(len(seen.naming("cook")))

    async with stage.hosting(service) as hosted:
        (id,) = await stage.bus.publish(Placed())
        await done.reaches(1)
        assert done == [1]
        async with asyncio.timeout(WITHIN):
            # where the last look comes just after the handler, nobody is named: then it blocks once more
            while not await goes_on(seen, "cook"):
                await stage.bus.publish(Placed())
                await done.reaches(len(done) + 1)
        told = text(hosted.health.watchdog.metrics())
    (line, *_), (over, *_) = seen.naming("cook"), seen.of("event loop goes on", "cook")
    assert (line["service"], line["id"]) == ("kitchen", id)
    assert f"{__file__}:" in line["at"]
    assert over["blocked"] > 0
    assert 'tidegate_loop_blocked_seconds_total{service="kitchen",handler="cook"}' in told


async def goes_on(seen: Seen, handler: str) -> bool:
    """Return whether the end of a block by this handler is told within a second."""
    for _ in range(50):
        if seen.of("event loop goes on", handler):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_c3_an_ordered_handler_is_named_too(stage: Stage, seen: Seen) -> None:
    service, done = Service("kitchen"), Log[str]()

    @service.on(Placed, ordered_by="number")
    async def in_turn(placed: Placed) -> None:
        seen.wait("in_turn")
        done.append("in_turn")

    async with stage.hosting(service):
        await stage.bus.publish(Placed(number=1))
        await done.reaches(1)
    assert seen.naming("in_turn")


async def test_c3_a_service_that_crashes_is_started_again_while_its_neighbour_goes_on(
    rabbitmq: Stage, tmp_path: Path
) -> None:
    async with isolated(tmp_path, rabbitmq.settings.url) as program:
        for name in ("sick", "healthy"):
            await program.says("worker started", process=name)
        ((first, second), _) = program.pids(), await program.becomes(200, "running")
        await rabbitmq.bus.publish(Placed(number=0, note="crash"), *(Placed(number=number) for number in range(1, 50)))
        ended = await program.says("process ended")
        assert (ended["process"], ended["services"]) == ("sick", ["sick"])
        assert ended["cause"].startswith("SIGSEGV")
        await program.says("worker started", 2, process="sick")
        await program.done.holds(lambda done: set(done) == set(range(50)), "every message, in the healthy service")
        told = await program.becomes(200, "running")
        assert (told["processes"]["sick"]["restarts"], told["processes"]["healthy"]["restarts"]) == (1, 0)
        assert told["processes"]["sick"]["cause"].startswith("SIGSEGV")
        assert set(told["handlers"]) == {"sick.work", "healthy.note"}
        await program.says("ack", 50, process="sick")
        program.process.send_signal(signal.SIGTERM)
        assert await program.ends() == 0
    assert {first, second} < set(program.pids())
    assert all(line["process"] in ("supervisor", "sick", "healthy") for line in program.lines)
    assert len(program.said("worker stopped")) == 2
    assert program.raw == [line for line in program.raw if line.startswith("{")]


async def test_c3_a_blocked_or_hanging_process_is_named_and_none_outlives_its_supervisor(
    rabbitmq: Stage, tmp_path: Path
) -> None:
    async with isolated(tmp_path, rabbitmq.settings.url) as program:
        for name in ("sick", "healthy"):
            await program.says("worker started", process=name)
        await program.becomes(200, "running")
        await rabbitmq.bus.publish(Placed(number=1, note="block"))
        await program.says("event loop blocked", process="sick", handler="work")
        blocked = await program.becomes(503, "blocked")
        assert blocked["processes"]["sick"]["blocked"]["handler"] == "work"
        gauge = 'tidegate_loop_blocked_seconds{process="sick",service="sick",handler="work"} '
        numbers = await program.answers("/metrics", gauge)
        assert float(numbers.partition(gauge)[2].split()[0]) >= watchdog_module.THRESHOLD
        assert (await program.asks("/pause/sick", "POST")).status_code == 503
        await program.answers("/pause/healthy", "paused healthy\n", "POST")
        await program.answers("/resume/healthy.note", "resumed healthy.note\n", "POST")
        await rabbitmq.bus.publish(Placed(number=2))
        await program.done.holds(lambda done: set(done) == {1, 2}, "both, in the healthy service")
        (program.folder / "go").touch()
        await program.says("event loop goes on", process="sick")
        await program.becomes(200, "running")
        program.stop_still("sick")
        await program.becomes(503, "not answering")
        program.process.kill()
        program.go_on("sick")
        # this waits for its streams, which end with the last process
        await program.ends()
    assert len(program.said("supervisor gone")) == 2
    assert len(program.said("worker stopped")) == 2
    named = [line.get("handler") for line in program.said("event loop blocked", process="sick")]
    # a busy machine may have blocked it while it started
    assert set(named[named.index("work") :]) == {"work"}


async def test_c3_a_mistake_that_a_process_finds_is_said_once_and_ends_the_whole(
    rabbitmq: Stage, tmp_path: Path
) -> None:
    wrong = rabbitmq.settings.url.replace("guest:guest", "guest:wrong")
    async with isolated(tmp_path, wrong, "--group", "all=sick,healthy") as program:
        assert await program.ends() == 2
    (told,) = [line for line in program.raw if not line.startswith("{")]
    assert "Login was refused" in told
    assert len(program.pids()) == 1
