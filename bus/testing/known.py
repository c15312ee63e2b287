"""Which class a type stands for in a process of many tests, each of which may have defined one for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..discovery import named
from ..errors import ConfigurationError
from ..event import Event, Events
from ..service import Service


class Known(Events):
    """The event classes that the services' handlers name, where a base brings those of all tests of the process.

    Of two for one type, the one that a handler names counts, then the one that a handler's module has, then the last.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        super().__init__()
        self._services = services
        self._unsure: set[str] = set()
        named(services, self)

    def add(self, cls: type[Event]) -> None:
        """Register a class; raise ConfigurationError where its type belongs to another that is as near to handlers."""
        kind = cls.__schema__.type
        other = None if kind is None else self.get(kind)
        if kind is None or other is None or other is _whole(cls):
            super().add(cls)
            return
        near, far = self._nearness(cls), self._nearness(other)
        if near == far > 0:
            super().add(cls)
        if near > far:
            self._unsure.discard(kind)
        elif near == far and _place(other) != _place(cls):
            self._unsure.add(kind)
        if near >= far:
            self._by_type[kind] = _whole(cls)

    def check(self, cls: type[Event]) -> None:
        """Raise ConfigurationError for an event that would be read as one of another class of its type."""
        kind: Any = cls.__schema__.type
        known = self.get(kind)
        if kind in self._unsure and known is not None and _place(known) != _place(_whole(cls)):
            raise ConfigurationError(
                f"a handler of their base would get {_told(known)} for {_told(cls)}, as both have the type {kind!r} "
                "and no handler's module has one of them: give one another type, or define it once and import it"
            )

    def _nearness(self, cls: type[Event]) -> int:
        if any(
            _whole(each) is _whole(cls) for s in self._services for handler in s.handlers for each in handler.events
        ):
            return 2
        return int(_is_named(_whole(cls), self._services))


def _whole(cls: Any) -> type[Event]:
    """Return the class that has the type: that of `Page[int]` is `Page`."""
    return cls.__pydantic_generic_metadata__["origin"] or cls  # type: ignore[no-any-return]


def _place(cls: type[Event]) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _told(cls: type[Event]) -> str:
    return ".".join(_place(cls))


def classes_of(
    kind: type[Event], known: Events, services: Iterable[Service], types: Iterable[str]
) -> dict[str, type[Event]]:
    """Return by which class to read those of these types that are events of a class, or of a base's subclasses.

    Those that no handler subscribes to count too. Raises ConfigurationError where a type has two classes, and it is not
    one of them alone that a handler's module names.
    """
    if (own := kind.__schema__.type) is not None:
        return {own: kind}
    found: dict[str, type[Event]] = {}
    for name in set(types):
        classes = [cls] if (cls := known.get(name)) is not None else _of_type(name, kind)
        if len(classes) > 1:
            classes = [cls for cls in classes if _is_named(cls, services)] or classes
        if len(classes) > 1:
            told = " and ".join(map(_told, classes))
            raise ConfigurationError(
                f"published({kind.__name__}): the type {name!r}, which was published and which no handler here "
                f"subscribes to, has several classes: {told}. Ask for the one that is meant"
            )
        found.update((name, cls) for cls in classes if issubclass(cls, kind))
    return found


def _of_type(name: str, base: type[Event]) -> list[type[Event]]:
    """Return the subclasses of a base that have this type; of a class that was defined again, the last."""
    found: dict[tuple[str, str], type[Event]] = {}
    left = [base]
    while left:
        cls = left.pop(0)
        left += cls.__subclasses__()
        if cls.__schema__.type == name and not cls.__pydantic_generic_metadata__["origin"]:
            found[_place(cls)] = cls
    return list(found.values())


def _is_named(cls: type[Event], services: Iterable[Service]) -> bool:
    """Tell whether the module of a handler has this class."""
    functions = [handler.function for service in services for handler in service.handlers]
    return any(value is cls for function in functions for value in getattr(function, "__globals__", {}).values())
