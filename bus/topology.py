"""What there is at a broker: what the code declares, what other versions declared, and what is left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias


Kind: TypeAlias = Literal["queue", "step", "binding", "exchange", "letters", "suspects", "delay", "record"]
"""A subscription's queue, a queue in which retries wait, a binding, an exchange; a stream of dead letters or of
suspects; a queue of the delay cascade; the record of what was declared."""
CASCADE: Final = "delay"
"""The service of the delay cascade's parts; no service has that name."""
Held: TypeAlias = Literal["", "messages", "consumers", "later", "moving", "letters", "service"]
"""Why a prune leaves something: there are messages in it; somebody consumes it, such as an old replica; the newest
version of its service declares it, and this code is another; its migration is not over; it has open dead letters;
others of its service stay."""
SHARED: Final = frozenset({"exchange", "letters", "suspects"})
"""Kinds of parts that all handlers of a service share."""
MOVING_HELD: Final = "its migration is not over: run `topology migrate` with a version that has its handler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing at the broker, by its name there; a binding has its queue's name, and `exchange` and `key`.

    `service` is whose it is, empty for what all share. `there` is None where the broker does not tell, as with every
    binding. `messages` are those that are ready to be taken: what a worker holds is not counted. In a stream they are
    all its entries, and of dead letters that are left over the open ones. Of a queue that is left over in the middle
    of its migration they are also those that stand aside. `version`, `worker` and `at` tell who declared it last, where
    this code does not.
    """

    kind: Kind
    name: str
    service: str = ""
    exchange: str = ""
    key: str = ""
    bindings: tuple[tuple[str, str], ...] = ()
    """Exchange and key of each, of a queue."""
    onward: str = ""
    """The exchange that its messages go on to when their time is over, or when they are given up."""
    there: bool | None = None
    messages: int = 0
    consumers: int = 0
    version: str = ""
    worker: str = ""
    at: datetime | None = None
    held: Held = ""

    def as_json(self) -> Mapping[str, Any]:
        """Return it as values of JSON."""
        told: dict[str, Any] = {"kind": self.kind, "name": self.name, "service": self.service}
        if self.kind == "binding":
            told |= {"exchange": self.exchange, "key": self.key}
        else:
            told |= {"there": self.there, "messages": self.messages, "consumers": self.consumers}
        if self.bindings:
            told["bindings"] = [{"exchange": exchange, "key": key} for exchange, key in self.bindings]
        if self.onward:
            told["onward"] = self.onward
        if self.at is not None:
            told |= {"version": self.version, "worker": self.worker, "at": self.at.isoformat(), "held": self.held}
        return told


def going(left: Sequence[Part], goes: Callable[[Part], bool]) -> list[Part]:
    """Return which parts of all that is left over go, as told for each: what a service shares goes with its queues."""
    staying = {part.service for part in left if part.kind in ("queue", "step") and not goes(part)}
    return [part for part in left if goes(part) and (part.kind not in SHARED or part.service not in staying)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A declaration of a service in the record: who noted it last, and whether this code makes the same."""

    service: str
    version: str
    worker: str
    at: datetime
    ours: bool
    newest: bool

    def as_json(self) -> Mapping[str, Any]:
        """Return it as values of JSON."""
        told = {"service": self.service, "version": self.version, "worker": self.worker, "at": self.at.isoformat()}
        return {**told, "ours": self.ours, "newest": self.newest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the code of an app declares, there or not, and what is there of other versions of it.

    `trouble` says why nothing is known of the broker, or of other versions; `refused` that it may not be known.
    """

    app: str
    broker: str
    declared: tuple[Part, ...] = ()
    left: tuple[Part, ...] = ()
    versions: tuple[Version, ...] = ()
    trouble: str = ""
    refused: bool = False

    @property
    def missing(self) -> tuple[Part, ...]:
        """What the code declares and is not there."""
        return tuple(part for part in self.declared if part.there is False)

    def as_json(self) -> Mapping[str, Any]:
        """Return it as values of JSON."""
        return {
            "app": self.app,
            "broker": self.broker,
            "trouble": self.trouble,
            "declared": [part.as_json() for part in self.declared],
            "left": [part.as_json() for part in self.left],
            "versions": [version.as_json() for version in self.versions],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration of one subscription is about to do.

    `why` is what the broker says about the queue and the arguments that the code declares; `before` are those that
    another version declared last, as far as that is known. `messages` are to be moved, `consumers` are to leave.
    `resumed` says that it was begun before, and cut off.
    """

    subscription: str
    queue: str
    why: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    messages: int
    consumers: int
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a prune did about one part: removed it with so many messages, or kept it, and `kept` says why."""

    part: Part
    messages: int = 0
    kept: str = ""
