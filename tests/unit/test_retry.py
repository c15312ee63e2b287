"""Policies: pure, and never more than six distinct delays."""

from __future__ import annotations

from datetime import timedelta
from random import Random

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
    first=st.integers(1, 100_000).map(lambda milliseconds: milliseconds / 1000),
    factor=st.floats(1, 10),
    limit=st.integers(1, 100_000_000).map(lambda milliseconds: milliseconds / 1000),
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
    [lambda: fixed(0, 1), lambda: fixed(3, -1), lambda: exponential(factor=0.5), lambda: fixed(2, timedelta(days=400))],
)
def test_what_no_broker_could_keep_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError):
        wrong()  # type: ignore[operator]
