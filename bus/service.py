"""Services and handlers: declarations, checked when they are built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeAlias, TypedDict, TypeVar, Unpack, overload

from . import ordering, resources, signature, topic
from .clock import Seconds, span
from .context import Context
from .errors import ConfigurationError
from .event import Event, Events
from .flow import Flow
from .message import Message
from .outcome import Outcome
from .pace import Rate, rate
from .provided import check as check_provided
from .provided import remedy
from .resources import Key, Per, Resource, where
from .retry import Policy, exponential
from .settings import check_name
from .store import Store, is_store
from .transport import Delivery, Subscription


Published: TypeAlias = Event | Sequence[Event] | None
"""What a handler returns: the events to publish with its ack, a list or tuple of them in their order."""

P = ParamSpec("P")
A = TypeVar("A", bound=Event)
B = TypeVar("B", bound=Event)
C = TypeVar("C", bound=Event)
In = TypeVar("In")
R = TypeVar("R", bound="Published | Awaitable[Published]")
Fn = TypeVar("Fn", bound=Callable[..., Any])

DEPLOY_STEP = timedelta(seconds=10)
"""How long a message of an unknown type or version waits between two looks, while a deploy may be under way."""

QUEUE_NAME = re.compile(r"[a-zA-Z0-9\-_.:@#,/+ ]{1,255}")
LONGEST_TIMEOUT = timedelta(minutes=25)
DEFAULT_TIMEOUT = 60.0
DEFAULT_CONCURRENCY = 16


class Options(TypedDict, total=False):
    """What `Service.on` takes beside the events.

    `name` pins the queue's name when the function is renamed. `retry` is by default `exponential(attempts=6,
    first=0.5, factor=4, limit=300)`; `timeout` 60 s, at most 25 min; `concurrency` is the service's unless set. `rate`
    is how many runs a worker begins, "100/s", "20/m" or "6/h"; none by default.

    `ordered_by` names the field (for patterns and queues: the attribute of the Message) whose equal values are handled
    one at a time and in order, over all replicas; retries then wait in place. `ordered_window` (1,000) is how many
    messages may be held at once, 1 to 10,000.

    `idempotent=True` runs no message again whose completion the service's `store` has; the handler may ask for the
    store's transaction, as `transaction: SqliteTransaction`, and what it writes there is committed with it.
    """

    name: str | None
    retry: Policy
    timeout: Seconds
    concurrency: int | None
    rate: str | None
    ordered_by: str | None
    ordered_window: int
    idempotent: bool


class Subscribe(Protocol[In]):
    """The decorator that `Service.on` returns: it checks the event's parameter and the return, and changes nothing."""

    def __call__(self, function: Callable[Concatenate[In, P], R], /) -> Callable[Concatenate[In, P], R]:
        """Register the function and return it as it is."""
        ...


@dataclass(frozen=True, slots=True)
class Queue:
    """A foreign queue as a source: consumed as it is, never declared; its messages reach the handler as `Message`."""

    name: str

    def __post_init__(self) -> None:
        if not QUEUE_NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"Queue({self.name!r}): a queue's name has 1 to 255 of a-z A-Z 0-9 - _ . : @ # , / +"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Handler:
    """One function of a service that subscribes to events. `needs` maps parameters to Context, Message or resources.

    A worker hosts a handler with a `flow` of its own: by it a middleware holds the handler back.
    """

    service: str
    name: str
    function: Callable[..., Any]
    events: tuple[type[Event], ...]
    patterns: tuple[str, ...]
    queues: tuple[str, ...]
    retry: Policy
    timeout: float
    concurrency: int | None
    needs: Mapping[str, Key]
    rate: Rate | None = None
    ordered_by: str | None = None
    ordered_window: int = ordering.WINDOW
    idempotent: bool = False
    flow: Flow = field(default_factory=Flow)

    @property
    def subscription_name(self) -> str:
        """`{service}.{handler}`: the name of its queue."""
        return f"{self.service}.{self.name}"

    def known(self, events: Events) -> dict[str, type[Event]]:
        """Return the event classes that it takes, by type; a base class stands for its registered subclasses."""
        return {str(cls.__schema__.type): cls for base in self.events for cls in events.concrete(base)}

    def subscription(self, events: Events) -> Subscription:
        """Return what the transport must have ready for it."""
        return Subscription(
            service=self.service,
            handler=self.name,
            patterns=(*self.known(events), *self.patterns),
            sources=self.queues,
            # retries of what is ordered wait in the worker
            delays=() if self.ordered_by is not None else tuple(sorted({*self.retry.steps, DEPLOY_STEP})),
            ordered=self.ordered_by is not None,
        )


Process: TypeAlias = Callable[[Delivery], Awaitable[Outcome]]
"""From a delivery to what it came to."""
Middleware: TypeAlias = Callable[[Handler, Process], Process]
"""Wraps the processing of one handler; called once per handler, when the worker starts."""


class Service:
    """A named compartment: its handlers, its queues, its limits, its dead letters.

    At most `concurrency` (16) of its deliveries run at once in a worker. `middleware` wraps each of its handlers,
    the first outermost. `store` is where completions of its `idempotent` handlers are recorded. Raises
    ConfigurationError for a name that queues cannot have, and for a value that cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        middleware: Sequence[Middleware] = (),
        store: Store | None = None,
    ) -> None:
        self.name = check_name("service", name)
        self.concurrency = _concurrency(f"service {name!r}", concurrency)
        self.middleware = wraps(f"service {name!r}", middleware)
        if store is not None and not is_store(store):
            raise ConfigurationError(
                f'service {name!r}: store={store!r} is no store; write store=SqliteStore("{name}.db")'
            )
        self.store = store
        self.handlers: list[Handler] = []
        self.resources: list[Resource] = []

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    @overload
    def on(self, a: type[A], /, **options: Unpack[Options]) -> Subscribe[A]: ...
    @overload
    def on(self, a: type[A], b: type[B], /, **options: Unpack[Options]) -> Subscribe[A | B]: ...
    @overload
    def on(self, a: type[A], b: type[B], c: type[C], /, **options: Unpack[Options]) -> Subscribe[A | B | C]: ...
    @overload
    def on(self, source: str | Queue, /, *sources: str | Queue, **options: Unpack[Options]) -> Subscribe[Message]: ...
    def on(self, *sources: Any, **options: Unpack[Options]) -> Any:
        """Subscribe a function to events of a class (or of a base's subclasses), or to messages by topic pattern.

        The function gets the event (a pattern or a Queue: the Message) first; its other parameters are found by their
        annotations: Context, Message, or a resource. What it returns is published with its ack. `options` are those of
        `Options`; raises ConfigurationError for one that is none, or a value that cannot be.
        """
        signature.check_parentheses(self.name, sources)

        def register(function: Fn) -> Fn:
            self.handlers.append(_handler(self, function, sources, options))
            return function

        return register

    @overload
    def resource(self, function: Fn, /) -> Fn: ...
    @overload
    def resource(self, *, per: Literal["worker", "delivery"]) -> Callable[[Fn], Fn]: ...
    def resource(self, function: Any = None, *, per: Per = "worker") -> Any:
        """Declare what handlers and other resources of this service may ask for by the type that it yields.

        `per="worker"` (default) opens once, before the first delivery; `per="delivery"` opens around each call.
        """

        def register(function: Any) -> Any:
            self.resources.append(resources.declare(function, per))
            return function

        return register(function) if function is not None else register


def wraps(place: str, given: Sequence[Middleware]) -> tuple[Middleware, ...]:
    """Return what was given as middleware; raises ConfigurationError for what is none."""
    if not isinstance(given, list | tuple):
        raise ConfigurationError(f"{place}: middleware={given!r}; it is a list, such as [breaker()]")
    for each in given:
        try:
            inspect.signature(each).bind("handler", "process")
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{place}: middleware has {each!r}, which takes no handler and process; write breaker(), not breaker"
            ) from None
    return tuple(given)


def check(services: Sequence[Service], provided: Mapping[Key, Any] | None = None) -> None:
    """Raise ConfigurationError, with a line for each problem, where services and handlers do not fit together."""
    problems = check_provided(provided or {}, *_known(services))
    if problems:
        raise ConfigurationError(*problems)
    given = set(provided or ())
    problems = _twice("service", [(service.name, _place(service)) for service in services])
    for service in services:
        names = [(handler.subscription_name, where(handler.function)) for handler in service.handlers]
        problems += _twice("handler", names)
        problems += resources.check(service.resources, given, service.name)
        known = given | {resource.key for resource in service.resources} | {Context, Message}
        store = store_of(service, provided or {})
        problems += [problem for handler in service.handlers for problem in _stored(handler, store)]
        problems += [
            f"{where(handler.function)}: nobody provides {resources.called(key)} for {name!r}; "
            f"{remedy(service.name, key, store)}"
            for handler in service.handlers
            for name, key in handler.needs.items()
            if key not in known and (store is None or key is not store.transaction_type)
        ]
    if problems:
        raise ConfigurationError(*problems)


def store_of(service: Service, provided: Mapping[Key, Any]) -> Store | None:
    """Return the service's store, or the one that replaces it."""
    found: Store | None = provided.get(Store, service.store)
    return found


def _known(services: Sequence[Service]) -> tuple[set[Key], set[Key]]:
    """Return what the services declare or ask for, with Store where one has or wants it, and what stores give."""
    declared = [resource for service in services for resource in service.resources]
    needs = [resource.needs for resource in declared]
    needs += [handler.needs for service in services for handler in service.handlers]
    asked = {key for each in needs for key in each.values()}
    if any(service.store is not None or any(each.idempotent for each in service.handlers) for service in services):
        asked.add(Store)
    transactions = {service.store.transaction_type for service in services if service.store is not None}
    return asked | {resource.key for resource in declared}, transactions


def _stored(handler: Handler, store: Store | None) -> list[str]:
    """Return what is wrong with how a handler uses its service's store."""
    place = where(handler.function)
    if store is None:
        missing = f'{place}: idempotent=True needs a store: Service("{handler.service}", store=SqliteStore("…"))'
        return [missing] if handler.idempotent else []
    if store.transaction_type not in handler.needs.values():
        return []
    if not handler.idempotent:
        return [f"{place}: only a handler with idempotent=True has a transaction: say so in its on(…)"]
    if not awaited(handler.function):
        return [f"{place}: a plain function cannot await its transaction: make it `async def`"]
    return []


def awaited(function: Callable[..., Any]) -> bool:
    """Tell whether calling the function makes something to await; all others run in a thread."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inspect.unwrap(function))


def _place(service: Service) -> str:
    functions = [handler.function for handler in service.handlers] + [r.function for r in service.resources]
    return f"the one of {where(functions[0])}" if functions else f"one without handlers, {service!r}"


def _twice(what: str, named: list[tuple[str, str]]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for name, place in named:
        if name in first:
            problems.append(f"two {what}s have the name {name!r}: {first[name]} and {place}; give one another name=")
        first.setdefault(name, place)
    return problems


def _handler(service: Service, function: Callable[..., Any], sources: tuple[Any, ...], options: Options) -> Handler:
    place = where(function)
    if unknown := options.keys() - Options.__annotations__.keys():
        raise ConfigurationError(
            f"{place}: on() has no option {min(unknown)!r}; it has {', '.join(Options.__annotations__)}"
        )
    if not inspect.isroutine(function):
        raise ConfigurationError(f"{place}: a handler is a function, and its name is the queue's")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{place}: a handler returns its events, or hands them to its Context; it yields none")
    events = tuple(source for source in sources if isinstance(source, type) and issubclass(source, Event))
    patterns = tuple(_pattern(source, place) for source in sources if isinstance(source, str))
    queues = tuple(source.name for source in sources if isinstance(source, Queue))
    if not sources or len(events) + len(patterns) + len(queues) != len(sources) or (events and patterns + queues):
        odd = [each for each in sources if each not in events and not isinstance(each, str | Queue)]
        raise ConfigurationError(f"{place}: {signature.misfit(sources, odd)}")
    concurrency, idempotent = options.get("concurrency"), options.get("idempotent", False)
    if not isinstance(idempotent, bool):
        raise ConfigurationError(f"{place}: idempotent={idempotent!r}; it is True or False")
    retry, ordered_by = options.get("retry", exponential()), options.get("ordered_by")
    if not isinstance(retry, Policy):
        raise ConfigurationError(f"{place}: retry={retry!r}; it is a policy, such as exponential() or immediate(3)")
    return Handler(
        service=service.name,
        name=check_name(f"{place}: handler", options.get("name") or function.__name__),
        function=function,
        events=events,
        patterns=patterns,
        queues=queues,
        retry=retry,
        timeout=_timeout(options.get("timeout", DEFAULT_TIMEOUT), place),
        concurrency=None if concurrency is None else _concurrency(place, concurrency),
        needs=signature.read(function, place, events or (Message,)),
        rate=_rate(options.get("rate"), place),
        ordered_by=ordered_by,
        ordered_window=ordering.check(place, events, retry, ordered_by, options.get("ordered_window")),
        idempotent=idempotent,
    )


def _pattern(pattern: str, place: str) -> str:
    try:
        return topic.check(pattern)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None


def _rate(written: str | None, place: str) -> Rate | None:
    try:
        return None if written is None else rate(written)
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from None


def _timeout(given: Seconds, place: str) -> float:
    try:
        timeout = span(given)
    except (TypeError, ValueError, OverflowError):  # no number, or none of seconds
        timeout = timedelta()
    if not timedelta() < timeout <= LONGEST_TIMEOUT:
        raise ConfigurationError(
            f"{place}: timeout={given!r}; it must be above 0 and at most 25 minutes, because a broker takes a message "
            "back after 30. Split longer work into events."
        )
    return timeout.total_seconds()


def _concurrency(place: str, value: int) -> int:
    if not isinstance(value, int) or not 1 <= value <= 10_000:
        raise ConfigurationError(f"{place}: concurrency={value!r}; it must be 1 to 10,000 deliveries at once")
    return value
