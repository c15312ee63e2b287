"""What a Tester is made of and what it is asked for: a slip is told at once, where a test would pass for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Literal, TypeAlias

from ..errors import ConfigurationError
from ..event import Event, Events
from ..resources import where
from ..service import Service


Outside: TypeAlias = Literal["before", "after"] | None
"""On which side of its `async with` a Tester is; None is inside."""


def check_services(given: Sequence[Any]) -> None:
    """Raise ConfigurationError for no service at all, for what is none, and for one that is given twice."""
    if not given:
        raise ConfigurationError(
            "Tester() hosts no service, so nothing that is published would be handled: write Tester(inventory), say. "
            'To test only what publishes, give it a service without handlers: Tester(Service("nobody"))'
        )
    for number, each in enumerate(given):
        if not isinstance(each, Service):
            raise ConfigurationError(f"Tester(…) takes services, and {_remedy(each)}")
        if any(each is other for other in given[:number]):
            raise ConfigurationError(f"Tester(…): the service {each.name!r} is given twice; give it once")


def check_event_class(kind: Any, known: Events) -> None:
    """Raise ConfigurationError for what `published` cannot look for."""
    if isinstance(kind, type) and issubclass(kind, Event):
        return
    cls = known.get(kind) if isinstance(kind, str) else None
    name = "OrderPlaced" if cls is None else cls.__name__
    raise ConfigurationError(f"published(…) takes an event class, not {kind!r}: write published({name})")


def check_handler(function: Any, services: Iterable[Service]) -> None:
    """Raise ConfigurationError for what is no handler of these services."""
    handlers = [handler for service in services for handler in service.handlers]
    if any(handler.function == function for handler in handlers):
        return
    names = ", ".join(handler.subscription_name for handler in handlers) or "none"
    told = where(function) if callable(function) else repr(function)
    raise ConfigurationError(
        f"handled(…) takes the function of a handler that this Tester hosts, and {told} is none. "
        f"The handlers here are {names}"
    )


def check_inside(call: str, outside: Outside) -> None:
    """Raise ConfigurationError for a call that comes before the `async with`, or after it."""
    if outside is not None:
        raise ConfigurationError(
            f"bus.{call} comes {outside} the Tester's `async with`, where no service runs, so that it would show "
            "nothing: move it inside, into `async with Tester(…) as bus:`"
        )


def check_loop(call: str, home: object) -> None:
    """Raise ConfigurationError for a call on another event loop than the Tester's: it would wait for ever."""
    if home is not None and home is not asyncio._get_running_loop():
        raise elsewhere(call)


def elsewhere(call: str) -> ConfigurationError:
    """Return what is wrong with a call on another event loop."""
    return ConfigurationError(
        f"bus.{call} comes on another event loop than the one that this Tester is open on. The `bus` fixture is on "
        "pytest-asyncio's loop of its fixtures: give the test the same (no loop_scope= of its own, and no other "
        "plugin's mark), or write `async with Tester(…) as bus:` in the test"
    )


def check_begun(call: str, outside: Outside) -> None:
    """Raise ConfigurationError for a look at what happened that comes before the `async with`; it may come after."""
    if outside == "before":
        check_inside(call, outside)


def _remedy(given: Any) -> str:
    """Return what was given in a service's place, and what to give instead."""
    if isinstance(given, ModuleType):
        last = given.__name__.rpartition(".")[2]
        found = [f"{last}.{name}" for name, value in vars(given).items() if isinstance(value, Service)]
        return f"{given.__name__} is a module: " + (
            f"write Tester({', '.join(found)})" if found else "no service is in it"
        )
    if isinstance(given, list | tuple | set | frozenset):
        return f"this is a {type(given).__name__} of them: write Tester(*services)"
    if hasattr(type(given), "services"):
        return "this is an app: write Tester(*app.services)"
    if isinstance(given, str):
        return f"{given!r} is a text: give the service itself, which was made by Service({given!r})"
    return f'{given!r} is none: write Tester(inventory), after inventory = Service("inventory")'
