"""`dead`: a letter that is over the broker's own limit of size is left, and told; the others are not held up by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus import App, Fate, Letter
from bus.transport.memory import MemoryDeadLetters, MemoryTransport
from bus.transport.rabbitmq.largest import TooLarge

from .conftest import Bury, Run
from .test_dead import declare, ids


LARGE = "m-0"


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker finds one of the letters too large."""
    replay, restore = MemoryDeadLetters.replay, MemoryDeadLetters.restore

    def check(id: str) -> None:
        if id == LARGE:
            raise TooLarge(20_000_000, 16_777_216, {id: Fate.REFUSED})

    async def replayed(self: MemoryDeadLetters, letter: Letter, *, to: str | None = None) -> None:
        check(letter.message.id)
        await replay(self, letter, to=to)

    async def restored(self: MemoryDeadLetters, service: str, packed: dict[str, Any]) -> bool:
        check(packed["message"]["id"])
        return await restore(self, service, packed)

    monkeypatch.setattr(MemoryDeadLetters, "replay", replayed)
    monkeypatch.setattr(MemoryDeadLetters, "restore", restored)


@pytest.mark.usefixtures("limited")
def test_a_replay_goes_on_past_it(run: Run, bury: Bury, transport: MemoryTransport, app: App) -> None:
    declare(app, transport)
    for number in range(3):
        bury(message={"id": f"m-{number}"})
    done = run("dead", "replay", "--yes")
    assert (done.exit_code, done.stdout) == (1, "replay: 2 of 3 done\n")
    assert done.stderr.startswith("kitchen/0-0: 20,000,000 bytes of body, and the broker's max_message_size is")
    assert ids(run) == ["0-0"]


@pytest.mark.usefixtures("limited")
def test_an_import_goes_on_past_it(run: Run, bury: Bury, tmp_path: Path) -> None:
    for number in range(3):
        bury(message={"id": f"m-{number}"})
    file = tmp_path / "letters.jsonl"
    run("dead", "export", str(file))
    run("dead", "discard", "--yes")
    done = run("dead", "import", str(file))
    assert (done.exit_code, done.stdout) == (1, "import: 2 letters; 1 too large for this broker\n")
    assert done.stderr.startswith("line 1: 20,000,000 bytes of body, and the broker's max_message_size is")
    assert len(ids(run)) == 2
