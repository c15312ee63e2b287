"""A store of another kind, as small as one can be: effects and completions are values in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bus import AlreadyCompleted


class DictTransaction:
    """Writes are kept apart until a commit: the store's, or the handler's own, as a session of others has one."""

    def __init__(self, store: DictStore) -> None:
        self._store = store
        self._written: list[str] = []
        self.used = False

    async def write(self, effect: str) -> None:
        await asyncio.sleep(0)
        self.used = True
        self._written.append(effect)

    async def commit(self) -> None:
        await asyncio.sleep(0)
        self.keep()

    def keep(self) -> None:
        self._store.effects += self._written
        self.forget()

    def forget(self) -> None:
        self._written = []


class DictCompletion:
    """Records its key in one step with the commit."""

    def __init__(self, store: DictStore, key: str | None) -> None:
        self.transaction = DictTransaction(store)
        self._store = store
        self._key = key

    @property
    def used(self) -> bool:
        return self.transaction.used

    async def commit(self) -> None:
        await asyncio.sleep(0)
        if self._key is not None and self._key in self._store.keys and self.used:
            raise AlreadyCompleted("another run was first")
        if self._key is not None:
            self._store.keys.add(self._key)
        self.transaction.keep()

    async def rollback(self) -> None:
        self.transaction.forget()


class DictStore:
    transaction_type = DictTransaction

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.effects: list[str] = []

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[DictStore]:
        yield self

    async def completed(self, key: str) -> bool:
        await asyncio.sleep(0)
        return key in self.keys

    def completion(self, key: str | None) -> DictCompletion:
        return DictCompletion(self, key)
