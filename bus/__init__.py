"""Tidegate: an event-driven microservice runtime. These are its public names; everything else may change.

How the library is laid out, in the order of one event's journey:

    event.py      typed events and their registry          client.py     Bus: publish, request; connect()
    message.py    an event on the wire                     transport/    the seam to a broker: memory, rabbitmq
    service.py    services and handlers, as declared       worker.py     hosts services: start, drain, release
    delivery.py   decode, call, judge, settle              failure.py    what an exception becomes
    outcome.py    Ack, Retry, DeadLetter, Release          retry.py      policies
    ordered.py    handlers that keep the order of a key    lanes.py      what they hold, a lane for each key
    replies.py    the requests that wait                   answers.py    what of an outcome answers a request
    isolation/    a process for each service               watchdog.py   names what blocks the event loop
    idempotency.py  what was completed is not run again   store/        where completions are recorded
    app.py        App: wiring                              testing/      Tester: the same code on virtual time
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final


if TYPE_CHECKING:
    from .app import App
    from .client import Bus, SyncBus, connect, connect_sync
    from .clock import Seconds
    from .context import Context
    from .errors import (
        AccessRefused,
        BusUnavailable,
        ConfigurationError,
        Fate,
        MessageTooLarge,
        PublishError,
        PublishRefused,
        Reject,
        RequestFailed,
        RequestTimeout,
        RetryAfter,
        TidegateError,
        TopologyMismatch,
        Undecodable,
        Unroutable,
    )
    from .event import Data, Event, Events
    from .message import Message
    from .middleware.breaker import breaker
    from .outcome import Ack, DeadLetter, Failure, Letter, Mark, Outcome, Release, Retry
    from .retry import Policy, exponential, fixed, immediate
    from .service import Handler, Middleware, Process, Queue, Service
    from .settings import Settings
    from .store import AlreadyCompleted, Completion, OpenStore, Store
    from .store.sqlite import SqliteStore, SqliteTransaction
    from .transport import Delivery


__version__ = "0.1.0"

__all__ = [
    "AccessRefused",
    "Ack",
    "AlreadyCompleted",
    "App",
    "Bus",
    "BusUnavailable",
    "Completion",
    "ConfigurationError",
    "Context",
    "Data",
    "DeadLetter",
    "Delivery",
    "Event",
    "Events",
    "Failure",
    "Fate",
    "Handler",
    "Letter",
    "Mark",
    "Message",
    "MessageTooLarge",
    "Middleware",
    "OpenStore",
    "Outcome",
    "Policy",
    "Process",
    "PublishError",
    "PublishRefused",
    "Queue",
    "Reject",
    "Release",
    "RequestFailed",
    "RequestTimeout",
    "Retry",
    "RetryAfter",
    "Seconds",
    "Service",
    "Settings",
    "SqliteStore",
    "SqliteTransaction",
    "Store",
    "SyncBus",
    "TidegateError",
    "TopologyMismatch",
    "Undecodable",
    "Unroutable",
    "breaker",
    "connect",
    "connect_sync",
    "exponential",
    "fixed",
    "immediate",
]

_HOMES: Final = {
    "app": "App",
    "client": "Bus SyncBus connect connect_sync",
    "clock": "Seconds",
    "context": "Context",
    "errors": "AccessRefused BusUnavailable ConfigurationError Fate MessageTooLarge PublishError PublishRefused Reject "
    "RequestFailed RequestTimeout RetryAfter TidegateError TopologyMismatch Undecodable Unroutable",
    "event": "Data Event Events",
    "message": "Message",
    "middleware.breaker": "breaker",
    "outcome": "Ack DeadLetter Failure Letter Mark Outcome Release Retry",
    "retry": "Policy exponential fixed immediate",
    "service": "Handler Middleware Process Queue Service",
    "settings": "Settings",
    "store": "AlreadyCompleted Completion OpenStore Store",
    "store.sqlite": "SqliteStore SqliteTransaction",
    "transport": "Delivery",
}
"""Where each name is defined. A name is imported when it is first used: pytest loads our plugin, and so this module, in
every session of an environment that has Tidegate."""


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            value = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
