"""Resources: what handlers need beside the event, keyed by the type that is yielded.

A resource is an async generator that yields once. One per worker opens before the first delivery and closes after the
last; one per delivery sees the handler's exception, so that a database session can roll back.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from .errors import ConfigurationError


Per: TypeAlias = Literal["worker", "delivery"]
Key: TypeAlias = Any
"""What a parameter's annotation says: a class, or a generic such as `Repository[Order]`."""

_ITERATORS = (AsyncIterator, AsyncGenerator, AsyncIterable)


@dataclass(frozen=True, slots=True)
class Resource:
    """A declared resource: `function` yields the value of `key`; `needs` names the resources that it takes itself."""

    key: Key
    function: Callable[..., AsyncGenerator[Any, None]]
    per: Per
    needs: Mapping[str, Key]


def declare(function: Callable[..., Any], per: Per) -> Resource:
    """Return the resource that an async generator function declares; raise ConfigurationError if it is none."""
    if per not in get_args(Per):
        raise ConfigurationError(
            f'{where(function)}: per={per!r}; it is "worker" (opened once; the default) or "delivery" (each call)'
        )
    if not inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{where(function)}: a resource is an async generator that yields its value once")
    hints = hints_of(function)
    returned = hints.pop("return", None)
    if get_origin(returned) not in _ITERATORS:
        raise ConfigurationError(f"{where(function)}: annotate what it yields, as in `-> AsyncIterator[Pool]`")
    for name in inspect.signature(function).parameters:
        if name not in hints:
            raise ConfigurationError(f"{where(function)}: parameter {name!r} has no annotation to find a resource by")
    return Resource(get_args(returned)[0], function, per, hints)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations of a function; raise ConfigurationError for one that cannot be resolved."""
    try:
        return get_type_hints(function)
    except NameError as error:
        raise ConfigurationError(
            f"{where(function)}: {error}; annotations of handlers and resources are read when the program runs, so "
            "import their names at the top of the module, not under `if TYPE_CHECKING`"
        ) from error


def where(function: Callable[..., Any]) -> str:
    """Return `module.function (file:line)` for messages."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def called(key: Key) -> str:
    """Return how a key reads in a message."""
    return key.__qualname__ if isinstance(key, type) else repr(key)


def check(resources: Iterable[Resource], provided: Iterable[Key], service: str) -> list[str]:
    """Return what is wrong with a service's resources, in words: twice the same key, a missing one, a circle."""
    known: dict[Key, Resource] = {}
    problems = []
    for resource in resources:
        if other := known.get(resource.key):
            problems.append(
                f"service {service!r}: two resources yield {called(resource.key)}: "
                f"{where(other.function)} and {where(resource.function)}"
            )
        known[resource.key] = resource
    given = set(provided)
    for resource in known.values():
        for name, key in resource.needs.items():
            needed = known.get(key)
            if key not in given and needed is None:
                problems.append(f"{where(resource.function)}: nobody provides {called(key)} for {name!r}")
            elif needed is not None and resource.per == "worker" and needed.per == "delivery":
                problems.append(f"{where(resource.function)}: it lives as long as the worker, {called(key)} does not")
    return problems or _circles(known, given, service)


def _circles(known: Mapping[Key, Resource], given: set[Key], service: str) -> list[str]:
    done = set(given)
    waiting = [key for key in known if key not in done]
    while waiting:
        ready = [key for key in waiting if all(need in done for need in known[key].needs.values())]
        if not ready:
            names = ", ".join(called(key) for key in waiting)
            return [f"service {service!r}: these resources need each other in a circle: {names}"]
        done.update(ready)
        waiting = [key for key in waiting if key not in done]
    return []


class Resources:
    """The open resources of one service in one worker. `provided` replaces declared ones, as tests do.

    `closes` is told, in words, which of those that live as long as the worker begins to close.
    """

    def __init__(
        self, declared: Iterable[Resource], provided: Mapping[Key, Any], closes: Callable[[str], None] = lambda _: None
    ) -> None:
        self._declared = {resource.key: resource for resource in declared if resource.key not in provided}
        self._scopes = {key: asynccontextmanager(_once(resource, closes)) for key, resource in self._declared.items()}
        self._open: dict[Key, Any] = dict(provided)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the resources that live as long as the worker; close them, last opened first, on the way out."""
        async with AsyncExitStack() as stack:
            for resource in self._declared.values():
                if resource.per == "worker":
                    await self._enter(resource, self._open, stack)
            yield

    def lasting(self, needs: Mapping[str, Key]) -> dict[str, Any]:
        """Return the arguments for those of `needs` that are open for as long as the worker lives."""
        return {name: self._open[key] for name, key in needs.items() if key in self._open}

    async def values(self, needs: Mapping[str, Key], stack: AsyncExitStack, waits_for: list[str]) -> dict[str, Any]:
        """Return the arguments for `needs`; those that live for one delivery are opened on `stack`.

        Meanwhile `waits_for` ends in the one that is being opened.
        """
        fresh: dict[Key, Any] = {}
        values = {}
        for name, key in needs.items():
            waits_for.append(f"{called(key)} to open")
            values[name] = await self._value(key, fresh, stack)
            waits_for.pop()
        return values

    async def _value(self, key: Key, fresh: dict[Key, Any], stack: AsyncExitStack) -> Any:
        if key in self._open:
            return self._open[key]
        if key not in fresh:
            await self._enter(self._declared[key], fresh, stack)
        return fresh[key]

    async def _enter(self, resource: Resource, into: dict[Key, Any], stack: AsyncExitStack) -> None:
        if resource.key in into:
            return
        needs = {}
        for name, key in resource.needs.items():
            needed = self._declared.get(key)
            scope = self._open if needed is None or needed.per == "worker" else into
            if key not in scope and needed is not None:
                await self._enter(needed, scope, stack)
            needs[name] = scope[key]
        try:
            into[resource.key] = await stack.enter_async_context(self._scopes[resource.key](**needs))
        except BaseException as error:
            error.add_note(f"while {called(resource.key)} was opened by {where(resource.function)}")
            raise


def _once(resource: Resource, closes: Callable[[str], None]) -> Callable[..., AsyncIterator[Any]]:
    return lambda **needs: _Once(resource, needs, closes)


class _Once(AsyncGenerator[Any, None]):
    """What a resource's function made; it is told by its place where it does not yield exactly once."""

    def __init__(self, resource: Resource, needs: Mapping[str, Any], closes: Callable[[str], None]) -> None:
        self._resource = resource
        self._closes = closes
        self._generator = resource.function(**needs)
        self._yielded = False

    async def asend(self, value: None) -> Any:
        """Go on to the yield, or from there to the end."""
        try:
            given = await (self._ended(self._generator.asend(value)) if self._yielded else self._generator.asend(value))
        except StopAsyncIteration:
            if self._yielded:
                raise
            raise self._wrong("ended without a yield") from None
        if self._yielded:
            await self._generator.aclose()
            raise self._wrong("yielded a second time")
        self._yielded = True
        return given

    async def athrow(self, *raised: Any) -> Any:
        """Go on to the end with what was raised at the yield."""
        await self._ended(self._generator.athrow(*raised), *raised)
        await self._generator.aclose()
        raise self._wrong("yielded a second time, when an exception was raised at the first")

    async def aclose(self) -> None:
        """End it at the yield."""
        await self._generator.aclose()

    async def _ended(self, closing: Awaitable[Any], *raised: Any) -> Any:
        """Go on to the end; of one that lives as long as the worker it is told that it closes, and what that raises."""
        if self._resource.per == "delivery":
            return await closing
        key, place = called(self._resource.key), where(self._resource.function)
        self._closes(f"{key}, which {place} opened,")
        try:
            return await closing
        except BaseException as error:
            if not isinstance(error, StopAsyncIteration) and all(error is not each for each in raised):
                error.add_note(f"while {key} was closed by {place}")
            raise

    def _wrong(self, how: str) -> ConfigurationError:
        key, place = called(self._resource.key), where(self._resource.function)
        return ConfigurationError(f"{place}: it {how}: a resource yields its {key} once, and closes it after that")
