"""The simulator: runs a scenario again and again, each time with other faults, and shrinks the first failure."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from .checked import Build, checked, fresh, refuse_idle, refuse_other
from .faults import Fault, chosen
from .report import Story, report
from .simulated import Scenario, Simulated, StandingLoop


SHRINKING: Final = 30.0
"""Real seconds in which faults of a failed run are left out, one after the other."""
OUTSIDE: Final = (
    "Is there state in a module, or in anything that build does not make anew; a plain function in a thread; or "
    "randomness that `random` does not know, such as uuid4()?"
)


class SimulationFailed(AssertionError):
    """A run failed: the message tells its seed, the faults that it takes, and what happened."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How one run ended: its error, what happened, how far it counted, and what ran in threads."""

    error: BaseException | None
    story: Story
    counts: Mapping[str, int]
    threaded: list[str]


def simulate(build: Build, scenario: Scenario, *, seeds: Iterable[int] = range(1000), seed: int | None = None) -> None:
    """Run `scenario` once per seed, each time on what `build` makes anew, while faults happen to worker and broker.

    `build` returns a Tester that is not open yet; what its `resources` hold outlives a crash of the worker, as a
    database does, so they must be fresh each time. The scenario publishes, awaits `bus.settled()` and asserts what must
    hold in the end; its `bus.resources` are those of the Tester.

    The faults are chosen by the seed: the worker crashes before or after any step of it, the connection or the broker
    is lost, messages come late or twice, a publish fails, or raises although it stored, handlers are slow, the clock
    jumps. Raises SimulationFailed for the first seed that fails, and at once where it fails without any fault;
    `seed=4711` runs that one alone, as it was. Raises ConfigurationError where the call cannot prove anything.
    """
    __tracebackhide__ = True  # pytest shows the caller's line instead
    first, wanted = checked(build, scenario, seeds if seed is None else [seed])
    build = fresh(build)
    calm = _run(build, scenario, 0, ())
    if calm.error is not None:
        told = report(first, build, scenario, "it fails without any fault", calm.error, calm.story, _threads(calm))
        raise SimulationFailed(told) from calm.error
    refuse_idle(calm.counts)
    for each in wanted:
        faults = chosen(Random(f"faults {each}"), calm.counts)
        ran = _run(build, scenario, each, faults)
        if ran.error is not None:
            told, ran = _told(build, scenario, each, faults, ran)
            raise SimulationFailed(told) from ran.error


def _told(build: Build, scenario: Scenario, seed: int, faults: tuple[Fault, ...], ran: Ran) -> tuple[str, Ran]:
    """Return what a failure is told by, and its run: one that fails again, with as few faults as are found in time."""
    again = _run(build, scenario, seed, faults)
    notes = _threads(ran)
    if again.error is None:
        notes.append(f"it does not repeat: run once more, it passed. {OUTSIDE}")
        what = f"the faults that it had: {_listed(faults)}"
    else:
        if again.story.lines() != ran.story.lines():
            notes.append(f"it does not repeat exactly: run once more, it failed, but otherwise. {OUTSIDE}")
        fewer, ran, whole = _shrunk(build, scenario, seed, faults, again, time.monotonic() + SHRINKING)
        what = f"the faults that it takes: {_listed(fewer)}"
        if not whole:
            notes.append(f"there may be fewer faults: looking for them was cut short after {SHRINKING:g} s")
        if not fewer and _run(build, scenario, 0, ()).error is not None:
            what = f"it fails without any fault by this time, though it passed at first. {OUTSIDE}"
    assert ran.error is not None
    return report(seed, build, scenario, what, ran.error, ran.story, notes), ran


def _listed(faults: tuple[Fault, ...]) -> str:
    return "; ".join(map(str, faults)) or "none, the order of steps will do"


def _threads(ran: Ran) -> list[str]:
    if not ran.threaded:
        return []
    return [f"a thread takes its turns by chance, so a repetition may differ: {', '.join(ran.threaded)}"]


def _shrunk(
    build: Build, scenario: Scenario, seed: int, faults: tuple[Fault, ...], ran: Ran, until: float
) -> tuple[tuple[Fault, ...], Ran, bool]:
    """Leave out one fault after the other for as long as the run still fails; tell whether there was time for all."""
    for fault in faults:
        if time.monotonic() > until:
            return faults, ran, False
        fewer = tuple(other for other in faults if other is not fault)
        without = _run(build, scenario, seed, fewer)
        if without.error is not None:
            return _shrunk(build, scenario, seed, fewer, without, until)
    return faults, ran, True


def _run(build: Build, scenario: Scenario, seed: int, faults: Iterable[Fault]) -> Ran:
    """Run the scenario once, on an event loop of its own, with the same chances for the same seed."""
    state = random.getstate()
    random.seed(seed)
    try:
        given = build()
        refuse_other(given)

        async def run() -> Ran:
            simulated = Simulated(given, seed, faults)
            error = await simulated.run(scenario)
            return Ran(error, simulated.trace, simulated.counts(), simulated.threaded())

        with asyncio.Runner(loop_factory=StandingLoop) as runner:
            ran = runner.run(run())
    finally:
        random.setstate(state)
    if ran.error is not None and not _is_failure(ran.error):
        raise ran.error
    return ran


def _is_failure(error: BaseException) -> bool:
    """Tell whether an error is a failure of the scenario; to be skipped, or interrupted, is none."""
    if isinstance(error, Exception | asyncio.CancelledError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_failure, error.exceptions))
    # pytest.fail() raises what is no Exception
    pytest: Any = sys.modules.get("pytest")
    return (
        pytest is not None
        and isinstance(error, pytest.fail.Exception)
        and not isinstance(error, pytest.xfail.Exception)
    )
