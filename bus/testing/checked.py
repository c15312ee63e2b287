"""What a call of `simulate` must be like, so that it proves something."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from itertools import chain
from types import FunctionType
from typing import Any, TypeAlias

from ..errors import ConfigurationError
from ..store import Store
from .tester import Tester


Build: TypeAlias = Callable[[], Tester]


def checked(build: Any, scenario: Any, seeds: Any) -> tuple[int, Iterator[int]]:
    """Return the first seed, and all of them. Raises ConfigurationError for what simulate cannot be called with."""
    if _loop_runs():
        raise ConfigurationError(
            "simulate runs event loops of its own, and this code runs on one already: make the test a plain "
            "`def test_…`, without async"
        )
    if not callable(build) or inspect.iscoroutinefunction(build) or not _takes(build):
        raise ConfigurationError(
            f"simulate(build, scenario): build must be a plain function without parameters that returns a Tester, not "
            f"{build!r}; are the two swapped?"
        )
    if not callable(scenario) or not _takes(scenario, None):
        raise ConfigurationError(
            f"simulate(build, scenario): the scenario must be an `async def` with one parameter, the bus, not "
            f"{scenario!r}"
        )
    if not isinstance(seeds, Iterable) or isinstance(seeds, str | bytes):
        raise ConfigurationError(f"seeds={seeds!r}: it must be several numbers, as range(1000); seed=4711 is one alone")
    wanted = map(_seed, seeds)
    for first in wanted:
        return first, chain([first], wanted)
    raise ConfigurationError(f"seeds={seeds!r} is empty, so nothing would run: give some, as range(1000)")


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _takes(function: Callable[..., Any], *arguments: object) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        return True  # what is written in C may have no signature
    return True


def _seed(each: object) -> int:
    if not isinstance(each, int):
        raise ConfigurationError(f"a seed must be a whole number, not {each!r}")
    return each


def refuse_other(given: object) -> None:
    """Raise ConfigurationError for what build must not return."""
    if not isinstance(given, Tester):
        raise ConfigurationError(f"simulate(build, …): build returned {given!r}; it must return a Tester")


def refuse_idle(counts: Mapping[str, int]) -> None:
    """Raise ConfigurationError for a scenario in which nothing happened that a fault could change."""
    if not counts.get("publish"):
        raise ConfigurationError(
            "simulate(…, scenario): the scenario published nothing, so it proves nothing: await bus.publish(…) in it"
        )
    if not counts.get("copy"):
        raise ConfigurationError(
            "simulate(…, scenario): nothing that was published has a handler in the services that build returns, so "
            "it proves nothing"
        )
    if counts.get("left"):
        raise ConfigurationError(
            "simulate(…, scenario): the scenario ended while handlers had work to do, and waited for none of it after "
            "its last publish, so it proves nothing: await bus.settled() in it, before it asserts"
        )


def fresh(build: Build) -> Build:
    """Return `build`, which raises ConfigurationError where it gives again what it gave for the run before."""
    before: list[Tester] = []

    @functools.wraps(build)
    def built() -> Tester:
        given = build()
        if before and isinstance(given, Tester):
            _refuse_shared(given, before.pop())
        before.append(given)
        return given

    return built


def _refuse_shared(given: Tester, before: Tester) -> None:
    if given is before:
        raise ConfigurationError(
            "simulate(build, …): build returned the same Tester twice, and each run needs its own: make it in build"
        )
    for name in _stores(given).keys() & _stores(before).keys():
        if _stores(given)[name] is _stores(before)[name]:
            raise ConfigurationError(
                f"simulate(build, …): the store of service {name!r} is the same for two runs, and what one run records "
                'in it is done for the next: replace it in build, as in resources={Store: SqliteStore(":memory:")}'
            )
    old = {id(value) for value in before.resources.values()}
    for value in given.resources.values():
        if id(value) in old and not _is_value(value):
            name = type(value).__qualname__
            raise ConfigurationError(
                f"simulate(build, …): build gave the same {name} object for two runs, and what one run leaves in it is "
                f"seen by the next: make it in build, as in resources={{{name}: {name}()}}"
            )


def _stores(given: Tester) -> dict[str, Store]:
    """Return the stores that services of a Tester have of their own, and that nothing replaces."""
    own = {service.name: service.store for service in given.services}
    return {name: store for name, store in own.items() if store is not None and Store not in given.resources}


def _is_value(thing: object) -> bool:
    """Tell whether it can be hashed and equals its copy, with all that it holds, as what keeps no state; or is code."""
    if isinstance(thing, Enum | FunctionType | type):
        return True
    try:
        hash(thing)
        return copy.deepcopy(thing) == thing and all(map(_is_value, getattr(thing, "__dict__", {}).values()))
    except Exception:
        return False  # what is compared or copied otherwise is no plain value, be it a mock, a lock or a list
