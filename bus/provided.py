"""Provided: resources that a test gives in place of the services' own; a slip there would let it run on these."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from .context import Context
from .message import Message
from .resources import Key, called
from .store import Completion, Store, is_store


PLAIN: Final = (str, bytes, int, float, complex, type(None))
"""What stands in for nothing but itself. Other values may: a fake need not inherit from what it replaces."""


def check(provided: Mapping[Key, Any], asked: Collection[Key], transactions: Collection[Key]) -> list[str]:
    """Return what is wrong with provided resources, in words.

    `asked` are the keys that services declare or ask for, Store where they have or want one; `transactions` the types
    of their stores' transactions.
    """
    if not isinstance(provided, Mapping):
        return [
            f"resources={provided!r}: it is a dict of what replaces resources, by their types: {{Pool: FakePool()}}"
        ]
    problems = []
    for key, value in provided.items():
        wrong = _wrong_key(key, asked, transactions) or _wrong_value(key, value)
        if wrong:
            problems.append(f"resources={{{called(key)}: …}}: {wrong}")
    return problems


def remedy(service: str, key: Key, store: Store | None) -> str:
    """Return what to do about a key that a handler asks for and nobody provides."""
    # not above: only who has a store needs SQLite
    from .store.sqlite import SqliteTransaction

    if store is not None and key in (SqliteTransaction, Completion):
        return f"the transactions of its store {store!r} are {called(store.transaction_type)}"
    if key is SqliteTransaction:
        return f'it is its store\'s: Service("{service}", store=SqliteStore("…")), and idempotent=True in its on(…)'
    if key is Completion:
        return "it is Tidegate's; ask for the transaction of its store, such as SqliteTransaction"
    return f"declare it with @{service}.resource"


def _wrong_key(key: Key, asked: Collection[Key], transactions: Collection[Key]) -> str:
    if key is Store and key not in asked:
        return "no service here has a store, or a handler with idempotent=True: leave it out"
    if key in (Context, Message):
        return "each delivery has its own, and nothing replaces it"
    if key in transactions:
        return 'a handler has its transaction from the store: replace that, resources={Store: SqliteStore(":memory:")}'
    if key in asked:
        return ""
    if isinstance(key, type) and hasattr(key, "opened") and hasattr(key, "transaction_type"):
        return "the stores of services are replaced by the key Store: use resources={Store: …}"
    if twins := [other for other in asked if isinstance(key, type) and called(other) == called(key)]:
        return f"no service here asks for the {called(key)} of {key.__module__}, but for that of {twins[0].__module__}"
    return f"no service here declares it or asks for it; they have {_listed(asked)}. Leave it out, or use its key"


def _listed(asked: Iterable[Key]) -> str:
    return ", ".join(sorted(called(key) for key in asked if key not in (Context, Message))) or "no resources"


def _wrong_value(key: Key, value: Any) -> str:
    if key is Store:
        return "" if is_store(value) else f'{value!r} is no store; write resources={{Store: SqliteStore(":memory:")}}'
    if not isinstance(key, type) or _is_one(key, value):
        return ""
    if isinstance(value, type):
        return f"{called(value)} is a class, and an instance is wanted: {called(value)}(…)"
    if isinstance(value, PLAIN):
        return f"{value!r} is no {called(key)}: give one, or an object that does what its users need of it"
    return ""


def _is_one(key: type, value: Any) -> bool:
    if key in (float, complex) and isinstance(value, int | float):
        return True
    try:
        return isinstance(value, key)
    except TypeError:  # such as a Protocol that cannot be asked
        return True
