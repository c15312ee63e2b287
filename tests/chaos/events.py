"""What the publishers publish, and who must handle it."""

from __future__ import annotations

from typing import Final

from bus import Event


class Task(Event, type="chaos.task"):
    """Two services want it."""

    number: int


class Flaky(Event, type="chaos.flaky"):
    """Some fail at first."""

    number: int


class Entry(Event, type="chaos.entry"):
    """The entries of an account are applied in order."""

    account: str
    number: int


class Order(Event, type="chaos.order"):
    """It has a follow-up."""

    number: int


class Taken(Event, type="chaos.taken"):
    """The follow-up of an order."""

    number: int


class Later(Event, type="chaos.later"):
    """It is published with a delay."""

    number: int


class Doomed(Event, type="chaos.doomed"):
    """It is dead-lettered on purpose: rejected, or given up on."""

    number: int


WANTED: Final = {
    "chaos.task": ("steady.work", "audit.see", "once.work"),
    "chaos.flaky": ("flaky.work",),
    "chaos.entry": ("account.apply",),
    "chaos.order": ("chain.take", "chain.finish"),
    "chaos.later": ("later.work",),
    "chaos.doomed": (),
}
"""The handlers that must succeed with each event that is published, and with its follow-up."""
FOLLOWED: Final = ("chain.take", "chain.finish")
"""A handler that publishes a follow-up, and the one that must handle it."""
DOOMED: Final = {"chaos.doomed": "doomed.work"}
"""The handlers that must give up."""
IDEMPOTENT: Final = "once.work"
"""The handler that must not have its effect twice: a row in its store, written in the store's transaction."""
DELETABLE: Final = ("steady.work", "flaky.work", "account.apply", "later.work")
"""Queues that may be deleted: what is in them comes from a publisher, whose ledger tells when."""
