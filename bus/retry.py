"""Retry policies: frozen values, and pure functions of (attempt, error, random). The waiting is the broker's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Final

from .clock import LONGEST_DELAY, Seconds
from .errors import ConfigurationError


MOST_ATTEMPTS: Final = 1000
MOST_STEPS: Final = 6
"""Distinct delays that a policy may have: each is a queue of the service at the broker."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often a failed delivery is tried again, and after which delays. Made by the functions of this module.

    `attempts` counts runs in all, the first included. `delays` has one entry per retry; with `jitter` a retry picks by
    chance among its delay and the neighbouring steps. Errors of `give_up` are not retried, nor those outside of `only`.
    """

    attempts: int
    delays: tuple[timedelta, ...]
    jitter: bool = False
    only: tuple[type[BaseException], ...] = (BaseException,)
    give_up: tuple[type[BaseException], ...] = ()

    @property
    def steps(self) -> tuple[timedelta, ...]:
        """The distinct delays, shortest first: what the broker must have a queue for."""
        return tuple(sorted(set(self.delays)))

    @property
    def longest(self) -> timedelta:
        """What all its waits sum to at most, its jitter included."""
        steps = self.steps
        most = [steps[min(steps.index(delay) + self.jitter, len(steps) - 1)] for delay in self.delays]
        return sum(most, timedelta())

    def decide(self, attempt: int, error: BaseException, random: Random) -> timedelta | None:
        """Return the delay before the next attempt after this one failed, or None to give up."""
        kind = type(error)  # an exception may lie about its class
        if attempt >= self.attempts or not issubclass(kind, self.only) or issubclass(kind, self.give_up):
            return None
        delay = self.delays[attempt - 1]
        if not self.jitter:
            return delay
        at = self.steps.index(delay)
        return random.choice(self.steps[max(at - 1, 0) : at + 2])

    def retry_on(self, *errors: type[BaseException]) -> Policy:
        """Return this policy for these errors only; every other error gives up at once."""
        return replace(self, only=_classes("retry_on", errors))

    def give_up_on(self, *errors: type[BaseException]) -> Policy:
        """Return this policy with errors that are never retried."""
        return replace(self, give_up=(*self.give_up, *_classes("give_up_on", errors)))

    def __str__(self) -> str:
        waits = ", ".join(f"{delay.total_seconds():g}" for delay in self.delays[:8])
        more = ", …" if len(self.delays) > 8 else ""
        jitter = " ± a step" if self.jitter and len(self.steps) > 1 else ""
        return f"{self.attempts} attempts,\nafter {waits}{more} s{jitter}" if self.delays else "1 attempt"


def immediate(attempts: int = 3) -> Policy:
    """Try again at once, `attempts` runs in all."""
    return _policy([0.0] * _retries(attempts), jitter=False)


def fixed(attempts: int, delay: Seconds) -> Policy:
    """Try again after the same delay (seconds or a timedelta) each time, `attempts` runs in all."""
    return _policy([_seconds("delay", delay)] * _retries(attempts), jitter=False, most=f"delay={delay!r}")


def exponential(
    attempts: int = 6, first: Seconds = 0.5, factor: float = 4, limit: Seconds = 300, *, jitter: bool = True
) -> Policy:
    """Try again after `first`, `first × factor`, … but never longer than `limit`, `attempts` runs in all.

    With `jitter`, each retry picks its delay by chance among its own and the neighbouring steps. A policy has at most
    six distinct delays (each is a queue at the broker): where there are more, delays are rounded up to one of six.
    """
    wait, most = _seconds("first", first), _seconds("limit", limit)
    if not isinstance(factor, int | float) or not factor >= 1:
        raise ConfigurationError(f"exponential(factor={factor!r}): the factor must be 1 or more")
    waits = []
    for _ in range(_retries(attempts)):
        waits.append(min(wait, most))
        wait = waits[-1] * factor
    return _policy(_rounded(waits), jitter=jitter, most=f"limit={limit!r}")


def _retries(attempts: int) -> int:
    """Return how many runs come after the first."""
    if not isinstance(attempts, int) or not 1 <= attempts <= MOST_ATTEMPTS:
        raise ConfigurationError(
            f"a retry policy with attempts={attempts!r}: it takes 1 to {MOST_ATTEMPTS} runs in all"
        )
    return attempts - 1


def _seconds(name: str, given: Seconds) -> float:
    if not isinstance(given, int | float | timedelta):
        raise ConfigurationError(f"a retry policy with {name}={given!r}: it takes seconds, or a timedelta")
    seconds = given.total_seconds() if isinstance(given, timedelta) else float(given)
    if not seconds >= 0:  # nan is no number either
        raise ConfigurationError(f"a retry policy with {name}={given!r}: a delay is 0 seconds or more")
    return seconds


def _classes(name: str, errors: tuple[type[BaseException], ...]) -> tuple[type[BaseException], ...]:
    for each in errors:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ConfigurationError(f"{name}({each!r}): it takes classes of exceptions, such as {name}(ValueError)")
    return errors


def _rounded(waits: list[float]) -> list[float]:
    distinct = sorted(set(waits))
    if len(distinct) <= MOST_STEPS:
        return waits
    last = len(distinct) - 1
    kept = [distinct[round(n * last / (MOST_STEPS - 1))] for n in range(MOST_STEPS)]
    return [next(step for step in kept if step >= wait) for wait in waits]


def _policy(waits: list[float], *, jitter: bool, most: str = "") -> Policy:
    if any(not wait <= LONGEST_DELAY.total_seconds() for wait in waits):
        raise ConfigurationError(f"a retry policy with {most}: a delay of it is over 310 days, the longest there is")
    # the broker counts in milliseconds, and a retry is never early
    delays = tuple(timedelta(milliseconds=-(-round(wait * 1_000_000) // 1000)) for wait in waits)
    return Policy(len(delays) + 1, delays, jitter)
