"""The parts of an attack: schedule, faults, ledgers, and the times of recovery."""

from __future__ import annotations

from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from tests.broker.node import Node

from .__main__ import main
from .faults import LASTING, OF_A_CLUSTER, Planned, quick, schedule
from .harness import Attack
from .injecting import injected
from .ledger import Ledger, Reader
from .leftovers import HANDLERS, unconsumed
from .processes import Process
from .reconcile import reconcile
from .recovery import Recovery, recoveries
from .result import merged, result
from .story import Story
from .table import markdown
from .world import World


TWO: Final = {"later.work": "chaos.later", "flaky.work": "chaos.flaky"}


@pytest.fixture
def story() -> Story:
    return Story()


async def test_what_is_not_as_before_in_time_breaks_the_run(tmp_path: Path) -> None:
    told: list[str] = []
    ledger = Ledger(tmp_path / "chaos.ledger")
    under = Attack(World((), None, (), (), (), ledger), tmp_path, told.append, 0)
    assert not await under.until(lambda: ["worker1"], "as before the fault", 0.001)
    assert reconcile(under.book).problems == told == ["not as before the fault within 0.001 s: worker1"]
    ledger.close()


async def test_a_queue_that_not_every_worker_consumes_is_told(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "chaos.ledger")
    workers = [Process(f"worker{n}", "module", folder=tmp_path, ledger=ledger, url="") for n in range(2)]
    consuming = dict.fromkeys(HANDLERS, 2) | {"steady.work": 1, "audit.see": 3}
    told = ",".join(f'{{<<"{queue}">>,{count}}}' for queue, count in consuming.items())
    node = cast("Node", SimpleNamespace(ctl=lambda *_: told))
    assert await unconsumed(World((node,), None, (), tuple(workers), (), ledger)) == ["audit.see", "steady.work"]
    ledger.close()


async def test_what_does_not_run_cannot_be_killed_or_stopped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "chaos.ledger")
    worker = Process("worker0", "module", folder=tmp_path, ledger=ledger, url="")
    with pytest.raises(RuntimeError, match=r"^worker0 does not run"):
        worker.kill()
    with pytest.raises(RuntimeError, match=r"^worker0 does not run"):
        await worker.stop()
    node = cast("Node", SimpleNamespace(pid=lambda: None, erlang_name="rabbit"))
    world = World((node,), None, (), (worker,), (), ledger)
    for kind in ("broker killed", "broker restarted", "worker killed", "worker stopped"):
        with pytest.raises(RuntimeError, match="does not run"):
            async with injected(world, Planned(kind, 0, 0, 0)):
                pass
    ledger.close()


def test_an_attack_without_a_fault_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chaos", "--minutes", "0"])
    assert main() == 2
    assert capsys.readouterr().out == "--minutes 0 is too short for any fault: give it more than 0\n"


def test_the_recovery_from_a_fault_is_taken_from_its_end(story: Story) -> None:
    story.published("p.a.1")
    story.publishing("p.a.2")
    story.fault("broker killed")
    end = story.now
    story.tell("confirmed", "publisher0/1", ref="p.a.2")
    story.published("p.a.3")
    story.handled("p.a.3")
    first = story.now
    story.handled("p.a.2")
    story.handled("p.a.1")
    last = story.now
    ((_, recovery),) = recoveries(story.book)
    assert recovery.publish == 1
    assert recovery.handle == recovery.everywhere == first - end
    assert recovery.caught_up == last - end


def test_who_does_not_recover_is_in_the_recovery_times(story: Story) -> None:
    for number, (handler, type) in enumerate(TWO.items()):
        story.published(f"p.a.{number}", type)
        story.handled(f"p.a.{number}", handler, worker=f"worker{number}/1")
    for kind in ("connections reset", "channels dead"):
        story.fault(kind)
        story.published(f"p.a.{kind}")
        story.handled(f"p.a.{kind}")
    story.published("p.a.flaky", "chaos.flaky")
    story.handled("p.a.flaky", "flaky.work", worker="worker1/1")
    (_, first), (fault, second) = recoveries(story.book)
    assert first.handle < first.everywhere == inf
    assert second.everywhere == story.now - fault.healed


def test_a_worker_that_does_not_recover_is_in_the_recovery_times(story: Story) -> None:
    for number in range(2):
        story.published(f"p.a.{number}")
        story.handled(f"p.a.{number}", worker=f"worker{number}/1")
    story.fault("connections reset")
    story.published("p.a.2")
    story.handled("p.a.2")
    assert recoveries(story.book)[0][1].everywhere == inf
    story.handled("p.a.2", worker="worker1/1")
    assert recoveries(story.book)[0][1].everywhere < inf


def test_what_is_never_done_or_done_after_the_next_fault_only_is_no_recovery(story: Story) -> None:
    story.published("p.a.1")
    story.handled("p.a.1")
    story.published("p.a.2")
    story.fault("connections reset")
    story.publishing("p.a.3")
    story.fault("channels dead")
    story.tell("confirmed", "publisher0/1", ref="p.a.3")
    story.handled("p.a.3")
    (_, recovery), _ = recoveries(story.book)
    assert recovery == Recovery(inf, inf, inf, inf)


def test_several_results_are_one_table(story: Story) -> None:
    story.published("p.a.1")
    story.fault("broker killed")
    story.published("p.a.2")
    story.handled("p.a.1")
    verdict = story.verdict()
    one = result(verdict, recoveries(story.book), seconds=60.0, cluster=False, broker="3.10.8")
    table = markdown(merged([one, one]))
    assert "| minutes of attack | 2 |" in table
    assert "| **lost** | 2 |" in table
    assert "| broker killed | 2 | 2.0 / 2.0 | never / never |" in table


def test_a_ledger_is_read_on_and_a_line_that_is_half_written_later(tmp_path: Path) -> None:
    path = tmp_path / "worker0.ledger"
    ledger, reader = Ledger(path), Reader(tmp_path)
    ledger.write("started", ref="1")
    with path.open("ab") as file:
        file.write(b'{"at": 1e9, "what": ')
    assert [entry["ref"] for entry in reader.news()] == ["1"]
    with path.open("ab") as file:
        file.write(b'"finished", "ref": "2"}\n')
    assert [entry["ref"] for entry in reader.news()] == ["2"]
    assert list(reader.news()) == []
    ledger.close()


@pytest.mark.parametrize("cluster", [False, True])
def test_a_seed_is_a_schedule_in_which_every_kind_comes_once_before_any_comes_again(cluster: bool) -> None:
    def begin(seed: int, size: int) -> list[Any]:
        faults = schedule(seed, cluster=cluster)
        return [next(faults) for _ in range(size)]

    of_one = {kind for kind in LASTING if not kind.startswith("broker")}
    kinds = of_one | set(OF_A_CLUSTER) if cluster else set(LASTING)
    assert begin(1, 40) == begin(1, 40) != begin(2, 40)
    for seed in range(20):
        assert {fault.kind for fault in begin(seed, len(kinds))} == kinds
    assert quick(1) == quick(1) != quick(2)
