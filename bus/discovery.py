"""Finds the events and services of packages: they are found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from traceback import extract_tb
from types import ModuleType
from typing import Any

from .errors import ConfigurationError
from .event import Event, Events
from .service import Service


def services(package: str) -> tuple[Service, ...]:
    """Import a package with all its modules and return the services in them, by name."""
    found: dict[int, Service] = {}
    for module in _modules(package, "services"):
        found |= {id(value): value for value in vars(module).values() if isinstance(value, Service)}
    if not found:
        raise ConfigurationError(f"services={package!r}: there is no Service in that package or its modules")
    return tuple(sorted(found.values(), key=lambda service: service.name))


def events(package: str, hosted: Sequence[Service] = ()) -> Events:
    """Import a package with all its modules and return its events, and those that the services' handlers name."""
    registry = Events()
    for module in _modules(package, "events"):
        for value in vars(module).values():
            if _is_event(value) and value.__module__ == module.__name__:
                registry.add(value)
    return named(hosted, registry)


def named(hosted: Sequence[Service], registry: Events | None = None) -> Events:
    """Return the event classes that the services' handlers name, added to those of `registry`."""
    registry = registry if registry is not None else Events()
    for service in hosted:
        for handler in service.handlers:
            for cls in handler.events:
                for known in _with_subclasses(cls):
                    registry.add(known)
    return registry


def _is_event(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Event) and value is not Event


def _with_subclasses(cls: type[Event]) -> Iterator[type[Event]]:
    yield cls
    if cls.__schema__.type is None:
        for below in cls.__subclasses__():
            yield from _with_subclasses(below)


def _modules(package: str, setting: str) -> Iterator[ModuleType]:
    try:
        root = _module(package, setting)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(
            f"{setting}={package!r}: there is no such package; run the program from the folder that holds it"
        ) from error
    yield root
    for info in pkgutil.iter_modules(getattr(root, "__path__", ()), f"{package}."):
        yield from _modules(info.name, setting)


def _module(name: str, setting: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        frames = [frame for frame in extract_tb(error.__traceback__) if frame.name == "<module>"]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        raise ConfigurationError(
            f"{setting}: the import of {name} ended the program with exit({code}){place}; what a module does only as a "
            'program belongs under `if __name__ == "__main__":`'
        ) from error
