"""Finds the events and services of packages: they are found by being there."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ConfigurationError
from .event import Event, Events
from .importing import imported, unreadable
from .replies import Failed
from .resources import where
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
    """Return the event classes that the services' handlers name, added to those of `registry`.

    Raises ConfigurationError, with a line for each, for bases that stand for no event: nothing would come to them.
    """
    registry = registry if registry is not None else Events()
    naming = [(handler, cls) for service in hosted for handler in service.handlers for cls in handler.events]
    for _, cls in naming:
        for known in _with_subclasses(cls):
            registry.add(known)
    if problems := [
        f"{where(handler.function)}: on({cls.__name__}) gets no events, as {cls.__name__} has no type= and no subclass "
        f'with one: write class {cls.__name__}(…, type="…"), or import its subclasses'
        for handler, cls in naming
        if not registry.concrete(cls)
    ]:
        raise ConfigurationError(*problems)
    return registry


def _is_event(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Event) and value is not Event


def _with_subclasses(cls: type[Event]) -> Iterator[type[Event]]:
    if cls is not Failed:  # ours, and nobody subscribes to it
        yield cls
    if cls.__schema__.type is None:
        for below in cls.__subclasses__():
            yield from _with_subclasses(below)


def _modules(package: str, setting: str) -> Iterator[ModuleType]:
    root = imported(package, setting)
    yield root
    for name in _below(getattr(root, "__path__", ()), setting):
        yield from _modules(f"{package}.{name}", setting)


def _below(folders: Iterable[str], setting: str) -> Iterator[str]:
    """Return the names of the modules and packages in folders; a folder is one without `__init__.py`, too."""
    yield from (known := dict.fromkeys(info.name for info in pkgutil.iter_modules(folders)))
    try:
        inside = [path for folder in map(Path, folders) if folder.is_dir() for path in folder.iterdir()]
        plain = {path.name for path in inside if path.name.isidentifier() and path.is_dir() and _holds_modules(path)}
    except OSError as error:
        # what is in there is not known: going on would leave services out
        raise unreadable(setting, error) from error
    yield from sorted(plain - known.keys())


def _holds_modules(folder: Path) -> bool:
    inside = [path for path in folder.iterdir() if path.name != "__pycache__"]
    return any(
        path.suffix == ".py" or (path.is_dir() and not path.is_symlink() and _holds_modules(path)) for path in inside
    )
