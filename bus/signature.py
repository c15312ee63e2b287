"""What a handler's function takes and returns, held against what it subscribes to."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from .errors import ConfigurationError
from .event import Data, Event
from .message import Message
from .resources import Key, called, hints_of, where


TAKEN: Final = "on() takes event classes, or topic patterns and Queue(…)"


def check_parentheses(service: str, sources: tuple[Any, ...]) -> None:
    """Raise ConfigurationError where `on` itself was made the decorator, so that no handler would come of it."""
    if len(sources) == 1 and callable(sources[0]) and not isinstance(sources[0], type):
        raise ConfigurationError(
            f"{where(sources[0])}: @{service}.on needs the events that the function handles: write @{service}.on(…) "
            "with their classes, or a topic pattern"
        )


def misfit(sources: tuple[Any, ...], odd: Sequence[Any]) -> str:
    """Return what is wrong with what a handler subscribes to, in words; `odd` is neither class, pattern nor queue."""
    if not sources:
        return f'{TAKEN}, and it got none: write on(OrderPlaced), or on("order.#")'
    if not odd:
        return f"{TAKEN}, but not both: give each a handler of its own"
    first = odd[0]
    if isinstance(first, Event):
        return f"{TAKEN}, and it got an event: write on({type(first).__name__})"
    if isinstance(first, type) and issubclass(first, Data):
        return f"{TAKEN}, and {first.__name__} is Data, a value inside of events: subclass Event, and give it type="
    return f"{TAKEN}, one by one, and it got {called(first)}"


def read(function: Callable[..., Any], place: str, given: Sequence[type]) -> dict[str, Key]:
    """Return what a function needs beside the first parameter, by the names of its parameters.

    `given` are the classes of what it is called with. Raises ConfigurationError where its annotations can take none of
    one of them, or return what nobody publishes; an annotation that says less than a class is believed.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ConfigurationError(f"{place}: a handler takes the event as its first parameter")
    hints = hints_of(function)
    # a decorator may take and return something else than what it wraps
    if not hasattr(function, "__wrapped__"):
        _check_taken(parameters[0].name, hints.get(parameters[0].name, Any), given, place)
        _check_returned(hints.get("return", Any), place)
    needs = {}
    for parameter in parameters[1:]:
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise ConfigurationError(f"{place}: parameter '{parameter}': parameters are passed by name, one by one")
        if parameter.name in hints:
            needs[parameter.name] = hints[parameter.name]
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigurationError(f"{place}: parameter {parameter.name!r} has no annotation to find a resource by")
    return needs


def _check_taken(name: str, annotation: Any, given: Sequence[type], place: str) -> None:
    classes = [_class_of(part) for part in _parts(annotation)]
    refused = [each for each in given if not any(cls is None or _takes(cls, each) for cls in classes)]
    if not refused:
        return
    remedy = f"annotate it `{name}: {' | '.join(cls.__name__ for cls in given)}`"
    if Message in refused:
        remedy += ", or name event classes in on(…) instead of patterns and queues"
    elif Message in classes:
        remedy += ", and ask for the Message by another parameter"
    raise ConfigurationError(
        f"{place}: its on(…) hands it {' and '.join(cls.__name__ for cls in refused)}, which its first parameter, "
        f"`{name}: {called(annotation)}`, does not take; {remedy}"
    )


def _check_returned(annotation: Any, place: str) -> None:
    if (wrong := _unpublished(annotation)) is not None:
        raise ConfigurationError(
            f"{place}: it returns {wrong}, which cannot be published: a handler returns an event, a list or "
            "tuple of events, or None"
        )


def _parts(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation alone."""
    annotation = getattr(annotation, "__value__", annotation)  # a name that was given to a type
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [part for member in get_args(annotation) for part in _parts(member)]


def _class_of(annotation: Any) -> type | None:
    """Return the class whose instances are meant; None where it cannot be told who is one."""
    cls = NoneType if annotation is None else get_origin(annotation) or annotation
    if cls is Any or not isinstance(cls, type) or getattr(cls, "_is_protocol", False):
        return None
    return cls


def _takes(cls: type, given: type) -> bool:
    if _below(given, cls):
        return True
    if not (issubclass(given, Event) and issubclass(cls, given)):
        return False
    # each of a base's subclasses may be named, and Page[int] for Page
    return given.__schema__.type is None or cls.__schema__ is given.__schema__


def _unpublished(annotation: Any) -> str | None:
    """Return the part of what is returned that is plainly no event, nor None, nor a sequence of events."""
    for part in _parts(annotation):
        cls = _class_of(part)
        if cls is None or any(_below(cls, each) for each in (NoneType, Event, Awaitable)) or _below(Event, cls):
            continue
        if not any(_below(cls, each) or _below(each, cls) for each in (list, tuple)):
            return called(part)
        for element in (each for argument in get_args(part) for each in _parts(argument)):
            inner = _class_of(element)
            if inner is not None and not (_below(inner, Event) or _below(Event, inner)):
                # each of several is published: only alone is None nothing
                return f"{'None' if inner is NoneType else called(element)} in {called(part)}"
    return None


def _below(cls: type, other: type) -> bool:
    try:
        return issubclass(cls, other)
    except TypeError:  # such as a TypedDict, which cannot be asked
        return True
