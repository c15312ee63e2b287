"""Stores: where completions of idempotent handlers are recorded, with what those wrote in the store's transaction.

A store of another database implements the three protocols of this file: see `docs/idempotency.md`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeGuard

from ..errors import TidegateError


class AlreadyCompleted(TidegateError):
    """The message was completed meanwhile, by another run of it: what this run wrote is rolled back.

    A handler may see it from its transaction. It need not catch it, and gains nothing by it: the message is acked.
    """


class Completion(Protocol):
    """The completion of one run, and the transaction that is committed with it. No handler gets it."""

    @property
    def transaction(self) -> object:
        """What the handler writes with, of the store's `transaction_type`. Nothing begins before its first use.

        It is another object than this one, because the completion is recorded by `commit` below and by nothing else:
        whatever a handler calls or executes, a commit of its own too, must not record it. The events of that handler
        are not stored yet, and its run may still fail.
        """
        ...

    @property
    def used(self) -> bool:
        """Whether the handler began to use it: then what it wrote is lost without a commit, and it must run again."""
        ...

    async def commit(self) -> None:
        """Store the completion, and what was written, together; both are durable when it returns.

        Raises AlreadyCompleted, with everything rolled back, where the completion was recorded before; and whatever
        the database raises where it did not commit.
        """
        ...

    async def rollback(self) -> None:
        """Undo what was written, if it was not committed. It may be called at any time, twice too.

        What it raises is logged, and the run comes to what it would have come to.
        """
        ...


class OpenStore(Protocol):
    """A store that one worker has opened."""

    async def completed(self, key: str) -> bool:
        """Tell whether a completion of this key was recorded, and not forgotten yet."""
        ...

    def completion(self, key: str | None) -> Completion:
        """Return a completion whose commit records the key; with None it records nothing, and only writes."""
        ...


class Store(Protocol):
    """Where completions are recorded: `Service("billing", store=…)`.

    Keys are text of at most 600 bytes, one for each handler and message.
    """

    @property
    def transaction_type(self) -> type[Any]:
        """The class by which handlers ask for their transaction, as a parameter's annotation."""
        ...

    def opened(self) -> AbstractAsyncContextManager[OpenStore]:
        """Open it for one worker, before the first delivery, and close it after the last.

        Several workers may have it open at once. To close it rolls back what is not committed, as a crash does.
        """
        ...


def is_store(value: object) -> TypeGuard[Store]:
    """Tell whether a value is a store, as far as that can be told without opening it."""
    has_type = isinstance(getattr(value, "transaction_type", None), type)
    return has_type and callable(getattr(value, "opened", None)) and not isinstance(value, type)
