"""What the benchmark of a cluster counts, on ledgers in which something is planted, and how it drains a node."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.cluster import __main__ as benchmark
from benchmarks.cluster.load import HANDLERS
from benchmarks.cluster.operating import unexpected
from bus import Failure, Letter, Message
from tests.broker.cluster import Cluster
from tests.broker.node import Node


NOW = datetime.now(UTC)


def letter(handler: str, number: int) -> Letter:
    body = b'{"parcel": "a", "number": %d}' % number
    message = Message(id="1", type="parcel.moved", version=1, source="/yard", time=NOW, body=body)
    failure = Failure(
        service="yard",
        handler=handler,
        reason="rejected",
        error_type="",
        error="",
        traceback="",
        attempts=1,
        first_failed_at=NOW,
        last_failed_at=NOW,
        worker="",
    )
    return Letter(id="1", service="yard", handler=handler, message=message, failure=failure)


def test_a_letter_of_a_handler_or_a_move_that_should_have_none_is_unexpected() -> None:
    letters = [letter("given_up", 10), letter("given_up", 7), letter("retried", 10)]
    assert unexpected(letters) == {("given_up", ("a", 7)), ("retried", ("a", 10))}


async def test_what_is_not_handled_in_time_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SETTLED_WITHIN", 0)
    (tmp_path / "published").write_text("stored a 1 0.1 5.0\n")
    broken: list[str] = []
    await benchmark.settled(tmp_path, 6, broken)
    assert len(broken) == 1
    (tmp_path / "handled").write_text("".join(f"{handler} a 1 6.0\n" for handler in HANDLERS))
    await benchmark.settled(tmp_path, 6, broken)
    assert len(broken) == 1


@pytest.mark.parametrize("broken", [[], ["not handled"]])
def test_what_is_broken_is_told_and_fails(
    broken: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def every_fault(*given: object) -> tuple[dict[str, object], dict[str, str]]:
        cast("list[str]", given[-1]).extend(broken)
        return {}, {"letters": "none"}

    node = SimpleNamespace(version=lambda: "3.10.8")
    cluster = SimpleNamespace(start=lambda: None, close=lambda: None, nodes=[node])
    monkeypatch.setattr(benchmark, "Cluster", lambda: cluster)
    monkeypatch.setattr(benchmark, "every_fault", every_fault)
    monkeypatch.setattr("sys.argv", ["cluster"])
    assert benchmark.main() == len(broken)
    assert capsys.readouterr().out.endswith("\n".join(["letters: none", *broken, ""]))


@pytest.mark.parametrize(("failing", "told", "tries"), [(2, "channel_termination_timeout", 3), (1, "no quorum", 1)])
def test_a_drain_that_fails_for_a_channel_that_does_not_end_is_run_again(failing: int, told: str, tries: int) -> None:
    ran: list[str] = []

    def run(*words: str) -> str:
        ran.append(" ".join(words))
        if len(ran) <= failing:
            raise RuntimeError(told)
        return ""

    node = cast("Node", SimpleNamespace(run=run))
    if tries > failing:
        Cluster.drain(cast("Cluster", None), node)
    else:
        with pytest.raises(RuntimeError, match=told):
            Cluster.drain(cast("Cluster", None), node)
    assert ran == ["rabbitmq-upgrade drain"] * tries


def test_a_drain_that_fails_three_times_is_told() -> None:
    ran: list[str] = []

    def run(*words: str) -> str:
        ran.append(" ".join(words))
        raise RuntimeError("{:channel_termination_timeout, 1}")

    with pytest.raises(RuntimeError, match="channel_termination_timeout"):
        Cluster.drain(cast("Cluster", None), cast("Node", SimpleNamespace(run=run)))
    assert len(ran) == 3
