"""Ordering: what `ordered_by` may be, and which key a message has by it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, TypeAlias
from uuid import UUID

from pydantic import create_model

from .errors import ConfigurationError, Undecodable, UnknownType, UnknownVersion
from .event import Event, decode_known
from .message import Message
from .retry import Policy


WINDOW: Final = 1_000
MOST_WINDOW: Final = 10_000
LONGEST_WAITS: Final = timedelta(minutes=20)
"""What an ordered policy's waits may sum to: they are in the worker, and the broker takes back what that holds."""
ATTRIBUTES: Final = ("key", "subject", "correlation_id", "causation_id", "type", "source")
"""What a handler of messages may be ordered by."""

WHOLE: Final = 10**30
"""Up to where a number of another kind is looked at for whether it is whole: `Decimal("1E+999999")` has long digits."""
SPELLED: Final = (float, Decimal, date, time, timedelta, frozenset)
"""Kinds whose equal values may have several texts; a datetime is a date too."""

KeyOf: TypeAlias = Callable[[Message], Hashable]
"""Returns the key of a message; None means that it has none, and no order."""


def check(place: str, events: Sequence[type[Event]], retry: Policy, by: str | None, window: int | None) -> int:
    """Return the window of a handler; raise ConfigurationError where it cannot be ordered like that."""
    if by is None:
        if window is not None:
            raise ConfigurationError(f"{place}: ordered_window={window} is for ordered handlers; give ordered_by= too")
        return WINDOW
    for cls in events:
        if by not in cls.__pydantic_fields__:
            raise ConfigurationError(
                f"{place}: ordered_by={by!r}: {cls.__name__} has no such field; it has "
                f"{', '.join(cls.__pydantic_fields__) or 'none'}. Name one that every event of the handler has."
            )
    if not events and by not in ATTRIBUTES:
        raise ConfigurationError(
            f"{place}: ordered_by={by!r}: a handler that gets the Message is ordered by one of {', '.join(ATTRIBUTES)}"
        )
    window = WINDOW if window is None else window
    if not 1 <= window <= MOST_WINDOW:
        raise ConfigurationError(f"{place}: ordered_window={window}; it must be 1 to {MOST_WINDOW:,} held messages")
    if retry.longest > LONGEST_WAITS:
        raise ConfigurationError(
            f"{place}: the waits of its retry policy may sum to {retry.longest.total_seconds() / 60:.1f} minutes. An "
            "ordered handler waits in place, with its key behind it, and the broker takes a message back after 30 "
            "minutes: keep them within 20, by fewer attempts or a lower limit, and replay from the dead letters."
        )
    return window


def keyed(known: Mapping[str, type[Event]] | None, by: str, most_bytes: int) -> KeyOf:
    """Return how a message's key is found: in the field of its event, or for `known` None as its attribute.

    None where it has none: a body that cannot be read, or is over `most_bytes`, is dead-lettered at once anyway.
    """
    if known is None:
        return lambda message: _key(getattr(message, by))
    classes = dict(known)
    fields = {kind: _Field(cls, by) for kind, cls in classes.items()}

    def key_of(message: Message) -> Hashable:
        if len(message.body) > most_bytes:
            return None
        field = fields.get(message.type)
        if field is not None and field.tells(message.version):
            return field.read(message.body)
        try:
            return _key(getattr(decode_known(classes, message.type, message.body, message.version), by))
        except Exception as error:
            if isinstance(error, Undecodable) and not isinstance(error, UnknownType | UnknownVersion):
                return None
            # it waits for a deploy, or for its handler's policy; what comes later of its key must not overtake it
            field = field or next(iter(fields.values()), None)
            return field.read(message.body) if field is not None else None

    return key_of


class _Field:
    """The field of an event class that is the key, read alone: a fraction of what the whole event costs."""

    def __init__(self, cls: type[Event], name: str) -> None:
        info = cls.__pydantic_fields__[name]
        fields: dict[str, Any] = {name: (info.annotation, info)}
        only = create_model(cls.__name__, __config__=cls.model_config, **fields)
        self._validate = only.__pydantic_validator__.validate_json
        self._name = name
        self._version = cls.__schema__.version
        decorators = cls.__pydantic_decorators__
        # validators of the class may make another value of it
        self._plain = not (
            decorators.validators
            or decorators.field_validators
            or decorators.root_validators
            or decorators.model_validators
        )

    def tells(self, version: int | None) -> bool:
        """Tell whether the field alone is what the event of this version has."""
        return self._plain and (version is None or version == self._version)

    def read(self, body: bytes) -> Hashable:
        """Return the key; None if there is none, or the field is not what it was."""
        try:
            return _key(getattr(self._validate(body), self._name))
        except Exception:  # a validator of the field may raise anything, and its run fails for it
            return None


def _key(value: object) -> Hashable:
    """Return the key that a value is. Equal values are one key, however they are spelled.

    So are a whole number, or a UUID, and its text, and the members of two enums with one value: what events of several
    services are ordered by may be either.
    """
    kind = type(value)
    if kind is str or value is None:
        return value
    if kind is int or kind is UUID:
        return str(value)
    if isinstance(value, Enum):
        return _key(value.value)
    if isinstance(value, int | float | Decimal) and -WHOLE < value < WHOLE and value == int(value):
        return str(int(value))
    return value if isinstance(value, SPELLED) else str(value)
