"""`topology migrate`: what it shows while it moves."""

from __future__ import annotations

import pytest

from bus.cli.migrate import LINE_EACH, Shown


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
