"""Policies: pure, and never more than six distinct delays."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import ConfigurationError, Policy, exponential, fixed, immediate


def seconds(policy: Policy) -> list[float]:
    return [delay.total_seconds() for delay in policy.delays]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (immediate(3), [0, 0]),
        (immediate(1), []),
        (fixed(4, 2), [2, 2, 2]),
        (fixed(2, timedelta(hours=1)), [3600]),
        (exponential(), [0.5, 2, 8, 32, 128]),
        (exponential(9), [0.5, 2, 8, 32, 128, 300, 300, 300]),
        (exponential(4, first=1, factor=1), [1, 1, 1]),
        (exponential(3, first=0.0001, factor=2), [0.001, 0.001]),
    ],
)
def test_the_delays_of_a_policy(policy: Policy, delays: list[float]) -> None:
    assert seconds(policy) == delays
    assert policy.attempts == len(delays) + 1


@pytest.mark.parametrize("policy", [immediate(3), fixed(3, 5), exponential(3, jitter=False)])
def test_a_policy_gives_up_after_its_attempts(policy: Policy) -> None:
    decisions = [policy.decide(attempt, ValueError(), Random(0)) for attempt in (1, 2, 3, 4)]
    assert decisions == [*policy.delays, None, None]


@given(
    attempts=st.integers(1, 60),
    first=st.floats(0.001, 100),
    factor=st.floats(1, 10),
    limit=st.floats(0.001, 100_000),
    seed=st.integers(0, 99),
)
def test_whatever_the_policy_its_delays_are_few_and_never_below_what_was_asked(
    attempts: int, first: float, factor: float, limit: float, seed: int
) -> None:
    policy = exponential(attempts, first=first, factor=factor, limit=limit)
    asked = [min(first * factor**n, limit) for n in range(attempts - 1)]
    assert len(policy.steps) <= 6
    assert all(delay >= wait - 1e-6 for delay, wait in zip(seconds(policy), asked, strict=True))
    assert all(delay <= max(limit, first) + 0.001 for delay in seconds(policy))
    for attempt in range(1, attempts):
        assert policy.decide(attempt, ValueError(), Random(seed)) in policy.steps
    assert policy.decide(attempts, ValueError(), Random(seed)) is None


def test_jitter_picks_the_step_or_a_neighbour() -> None:
    policy = exponential(6)
    picked = {policy.decide(3, ValueError(), Random(seed)) for seed in range(50)}
    assert picked == {timedelta(seconds=2), timedelta(seconds=8), timedelta(seconds=32)}


def test_errors_can_be_chosen() -> None:
    only = fixed(3, 1).retry_on(ConnectionError)
    never = fixed(3, 1).give_up_on(KeyError)
    assert only.decide(1, ConnectionResetError(), Random(0)) is not None
    assert only.decide(1, ValueError(), Random(0)) is None
    assert never.decide(1, KeyError(), Random(0)) is None
    assert never.decide(1, ValueError(), Random(0)) is not None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fixed(0, 1),
        lambda: immediate(1001),
        lambda: fixed(3, -1),
        lambda: fixed(2, timedelta(days=400)),
        lambda: fixed(2, float("nan")),
        lambda: fixed(2, float("inf")),
        lambda: fixed(2, 1e30),
        lambda: exponential(first=-1),
        lambda: exponential(limit=-1),
        lambda: exponential(factor=0.5),
        lambda: exponential(factor=float("nan")),
        lambda: exponential(1000, limit=float("inf")),
    ],
)
def test_what_no_broker_could_keep_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError):
        wrong()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(0.1, 100), (0.0001, 1), (1e-5, 1), (0.0014, 2), (1.999001, 2000), (0, 0)],
)
def test_a_delay_is_rounded_up_to_the_millisecond(asked: float, kept: int) -> None:
    assert fixed(2, asked).delays == (timedelta(milliseconds=kept),)
    assert fixed(2, timedelta(seconds=asked)).delays == (timedelta(milliseconds=kept),)


def test_the_longest_policy_is_made_of_six_steps() -> None:
    policy = exponential(1000)
    assert len(policy.delays) == 999
    assert [step.total_seconds() for step in policy.steps] == [0.5, 2, 8, 32, 128, 300]
    assert policy.decide(999, ValueError(), Random(0)) in policy.steps


def test_more_than_six_delays_are_rounded_up_and_never_down() -> None:
    policy = exponential(9, first=1, factor=2, limit=1000)
    assert seconds(policy) == [1, 2, 8, 8, 16, 64, 64, 128]


@pytest.mark.parametrize(("attempt", "neighbours"), [(1, [0.5, 2]), (5, [32, 128])])
def test_jitter_at_an_end_has_one_neighbour(attempt: int, neighbours: list[float]) -> None:
    picked = {exponential().decide(attempt, ValueError(), Random(seed)) for seed in range(50)}
    assert picked == {timedelta(seconds=wait) for wait in neighbours}


def test_without_jitter_nothing_is_left_to_chance() -> None:
    policy = exponential(jitter=False)
    picked = [{policy.decide(attempt, ValueError(), Random(seed)) for seed in range(20)} for attempt in range(1, 6)]
    assert picked == [{delay} for delay in policy.delays]


def test_choosing_errors_changes_nothing_else_and_adds_up() -> None:
    policy = exponential(4)
    chosen = policy.retry_on(OSError).give_up_on(FileNotFoundError).give_up_on(PermissionError)
    assert (chosen.attempts, chosen.delays, chosen.jitter) == (policy.attempts, policy.delays, policy.jitter)
    for error, again in [
        (OSError(), True),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (KeyError(), False),
    ]:
        assert (chosen.decide(1, error, Random(0)) is not None) == again
    assert policy.decide(1, FileNotFoundError(), Random(0)) is not None


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (immediate(1), "1 attempt"),
        (fixed(3, 2.5), "3 attempts,\nafter 2.5, 2.5 s"),
        (exponential(), "6 attempts,\nafter 0.5, 2, 8, 32, 128 s ± a step"),
        (fixed(20, 1), "20 attempts,\nafter 1, 1, 1, 1, 1, 1, 1, 1, … s"),
    ],
)
def test_a_policy_reads_as_words(policy: Policy, told: str) -> None:
    assert str(policy) == told


POLICIES = st.one_of(
    st.builds(
        exponential,
        st.integers(1, 1000),
        first=st.floats(0, 1000),
        factor=st.floats(1, 1e300),
        limit=st.floats(0, 26_784_000),
        jitter=st.booleans(),
    ),
    st.builds(fixed, st.integers(1, 1000), st.floats(0, 26_784_000)),
    st.builds(immediate, st.integers(1, 1000)),
)


@given(POLICIES, st.integers(0, 99))
def test_a_policy_played_to_its_end_keeps_its_word(policy: Policy, seed: int) -> None:
    random, steps, waits = Random(seed), policy.steps, list[timedelta]()
    while (wait := policy.decide(len(waits) + 1, ValueError(), random)) is not None:
        waits.append(wait)
    assert len(waits) + 1 == policy.attempts
    assert list(policy.delays) == sorted(policy.delays)
    for own, wait in zip(policy.delays, waits, strict=True):
        at = steps.index(own)
        assert abs(steps.index(wait) - at) <= policy.jitter, "the step or a neighbour, without jitter the step"
    assert sum(waits, timedelta()) <= policy.longest
    assert policy.decide(1 << 64, ValueError(), random) is None


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: immediate("3"), "attempts='3': it takes 1 to 1000 runs in all"),
        (lambda: immediate(2.5), "attempts=2.5"),
        (lambda: fixed(3, "2"), "delay='2': it takes seconds, or a timedelta"),
        (lambda: fixed(3, -1), "delay=-1: a delay is 0 seconds or more"),
        (
            lambda: fixed(2, timedelta(days=400)),
            r"delay=datetime.timedelta\(days=400\): a delay of it is over 310 days",
        ),
        (lambda: exponential(first=-1), "first=-1: a delay is 0"),
        (lambda: exponential(first=math.nan), "first=nan: a delay is 0"),
        (lambda: exponential(limit=-1), "limit=-1: a delay is 0"),
        (lambda: exponential(60, limit=10**9), "limit=1000000000: a delay of it is over 310 days"),
        (lambda: exponential(first=None), "first=None: it takes seconds"),
        (lambda: exponential(limit="5 m"), "limit='5 m': it takes seconds"),
        (lambda: exponential(factor="4"), r"exponential\(factor='4'\): the factor must be 1 or more"),
        (lambda: exponential(factor=math.nan), "the factor must be 1 or more"),
        (lambda: immediate(3).retry_on(ValueError()), r"retry_on\(ValueError\(\)\): it takes classes of exceptions"),
        (lambda: immediate(3).give_up_on("ValueError"), r"give_up_on\('ValueError'\): it takes classes"),
        (lambda: immediate(3).give_up_on(int), "it takes classes of exceptions"),
    ],
)
def test_a_policy_of_what_is_no_number_and_no_exception_is_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        make()
