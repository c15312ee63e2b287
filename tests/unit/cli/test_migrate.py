"""`topology migrate`: what it shows while it moves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from bus import AccessRefused, BusUnavailable
from bus.cli.migrate import LINE_EACH, Shown
from bus.topology import Migration
from bus.transport import Subscription
from bus.transport.memory import MemoryTransport
from bus.transport.memory_topology import MemoryTopology

from .conftest import Run


CUT_OFF = "migrate was cut off: run it again, and it goes on; until then the handler stands still\n"


def test_each_step_is_told_once_and_how_far_it_is_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    for what in ("moves what was in tidy.flaky", "moves what was in tidy.flaky.moving"):
        for moved in range(LINE_EACH // 2, LINE_EACH * 2 + 1, LINE_EACH // 2):
            shown(what, moved)
    assert capsys.readouterr().err.splitlines() == [
        "migrate: moves what was in tidy.flaky",
        f"migrate: moves what was in tidy.flaky: {LINE_EACH * 3 // 2} messages",
        "migrate: moves what was in tidy.flaky.moving",
        f"migrate: moves what was in tidy.flaky.moving: {LINE_EACH * 3 // 2} messages",
    ]


@pytest.mark.parametrize(
    ("ends", "steps", "code", "told"),
    [
        (None, 1, 130, f"migrate: marked as moving\n{CUT_OFF}interrupted\n"),
        (None, 0, 130, f"{CUT_OFF}interrupted\n"),
        (BusUnavailable("no broker answers", {}), 1, 3, f"migrate: marked as moving\n{CUT_OFF}no broker answers\n"),
        (AccessRefused("no right"), 1, 2, f"migrate: marked as moving\n{CUT_OFF}no right\n"),
        (AccessRefused("no right"), 0, 2, "no right\n"),
    ],
    ids=["ctrl-c", "ctrl-c before it is told", "the broker is away", "no right half-way", "no right"],
)
def test_whatever_ends_it_that_the_handler_stands_still_is_told(
    run: Run,
    transport: MemoryTransport,
    monkeypatch: pytest.MonkeyPatch,
    ends: Exception | None,
    steps: int,
    code: int,
    told: str,
) -> None:
    async def migration(self: MemoryTopology, app: str, subscription: Subscription) -> Migration:
        name = subscription.name
        return Migration(
            subscription=name, queue=name, why="", before={}, after={}, messages=1, consumers=0, resumed=False
        )

    async def migrate(
        self: MemoryTopology, app: str, subscription: Subscription, tell: Callable[[str, int], None]
    ) -> int:
        for _ in range(steps):
            tell("marked as moving", 0)
        if ends is not None:
            raise ends
        os.kill(os.getpid(), signal.SIGINT)
        return await asyncio.sleep(60, 0)

    monkeypatch.setattr(MemoryTopology, "migration", migration)
    monkeypatch.setattr(MemoryTopology, "migrate", migrate)
    done = run("topology", "migrate", "kitchen.cook", "--yes")
    assert (done.exit_code, done.stderr) == (code, told)
