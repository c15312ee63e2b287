"""Events: immutable, typed, versioned facts; how they become bytes and come back.

The attributes of a message follow CloudEvents 1.0; an event class gives its `type` and, through the version, its
`dataschema`. Everything about a class that is not a field lives in `__schema__`, so that users' fields may be called
`type`, `version` or `id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import from_json, to_json
from typing_extensions import Unpack, dataclass_transform

from .errors import ConfigurationError, Undecodable, UnknownType, UnknownVersion
from .fields import check_declared, check_held
from .topic import check as check_pattern


Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the raw data of one version to the raw data of the next."""

E = TypeVar("E", bound="Event")
F = TypeVar("F", bound=Upcast)

_CONFIG_KEYS = frozenset(ConfigDict.__annotations__)


@dataclass(frozen=True, slots=True)
class Schema:
    """What a class says of its events beside the fields: `type` is None for a base that is never published."""

    type: str | None
    version: int
    upcasts: dict[int, Upcast] = field(default_factory=dict)


def _schema(name: str, kind: str | None, version: int) -> Schema:
    if kind is not None:
        _check_type(name, kind)
    if not isinstance(version, int) or version < 1:
        raise ConfigurationError(f"class {name}: version={version!r}; versions count from 1")
    return Schema(kind, version)


def _check_type(name: str, kind: str) -> None:
    if not isinstance(kind, str) or "*" in kind or "#" in kind:
        raise ConfigurationError(f'class {name}: type={kind!r}; a type is plain dotted words, such as "order.placed"')
    try:
        check_pattern(kind)
    except ConfigurationError as error:
        raise ConfigurationError(f"class {name}: {error}") from None


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, PrivateAttr))
class DataMeta(ModelMetaclass):
    """Tells type checkers that every subclass is frozen, and says which keywords an event class takes."""

    def __new__(
        mcs,
        name: str,
        bases: tuple[type[Any], ...],
        namespace: dict[str, Any],
        *,
        type: str | None = None,
        version: int = 1,
        **config: Unpack[ConfigDict],
    ) -> Any:
        """Build the class; refuse keywords that neither Tidegate nor pydantic knows, and fields that can change."""
        if unknown := [key for key in config if key not in _CONFIG_KEYS and not key.startswith("__pydantic")]:
            raise ConfigurationError(
                f"class {name}: unknown class keyword {unknown[0]!r}; an event takes type=, version= and pydantic's own"
            )
        try:
            built: Any = super().__new__(mcs, name, bases, namespace, **config)
        except PydanticSchemaGenerationError as error:
            unknown_type = str(error).partition(". ")[0]
            raise ConfigurationError(
                f"class {name}: {unknown_type}: fields are what JSON can hold, such as str, datetime, a tuple or "
                "a Data class"
            ) from None
        check_declared(built)
        if not built.__pydantic_generic_metadata__["origin"]:  # Page[int] inherits the type of Page
            built.__schema__ = _schema(name, type, version)
        return built


class Data(BaseModel, metaclass=DataMeta):
    """A frozen value inside an event: fields that belong together, such as an order's line.

    Unknown fields in incoming data are ignored, so that an added optional field needs no new version.
    """

    # JSON has no nan and no infinity: an event that held one could be published, and never be read; null would be read
    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False, ser_json_inf_nan="strings"
    )

    __schema__: ClassVar[Schema]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, with the fields of `update` as a reader of the copy would have them.

        Raises ValidationError where the copy would not be valid, which pydantic's own does not look at.
        """
        copied = super().model_copy(update=update, deep=deep)
        if not update:
            return copied
        check_held(copied)
        sent = copied.__pydantic_serializer__.to_json(copied, by_alias=True, warnings="none")
        read = dict(self.__pydantic_validator__.validate_json(sent))
        return super().model_copy(update={name: read[name] for name in update if name in read}, deep=deep)


class Event(Data):
    """A fact that happened, published under a dotted type: `class OrderPlaced(Event, type="order.placed", version=1)`.

    Fields are validated by pydantic; the value is immutable, so use tuples and other `Data`, not lists and dicts.
    A subclass without `type=` is an abstract base: a handler that names it gets the events of all its subclasses.
    """

    @classmethod
    def upcast(cls, version: int) -> Callable[[F], F]:
        """Register the step from raw data of `version` to raw data of `version + 1`.

        Steps run one after the other until the class's own version is reached; each gets a plain dict and returns one.
        Raises ConfigurationError where there is such a step already, or the version is not older than the class's.
        """
        if not isinstance(version, int):
            raise ConfigurationError(
                f"{cls.__name__}.upcast({version!r}): it takes the version from which the step leads, as in "
                f"@{cls.__name__}.upcast(1)"
            )

        def register(step: F) -> F:
            schema = cls.__schema__
            if not 1 <= version < schema.version:
                raise ConfigurationError(f"{cls.__name__}.upcast({version}): the class is version {schema.version}")
            if version in schema.upcasts:
                raise ConfigurationError(f"{cls.__name__}.upcast({version}): there are two steps from that version")
            schema.upcasts[version] = step
            return step

        return register


class Events:
    """The event classes that an app knows, by type. There is no global one: an app builds its own."""

    def __init__(self, classes: Iterable[type[Event]] = ()) -> None:
        self._by_type: dict[str, type[Event]] = {}
        for cls in classes:
            self.add(cls)

    def __iter__(self) -> Iterator[type[Event]]:
        return iter(self._by_type.values())

    def __len__(self) -> int:
        return len(self._by_type)

    def add(self, cls: type[Event]) -> None:
        """Register a class; raise ConfigurationError where its type belongs to another class.

        `Page[int]` counts as `Page`, whose type it has.
        """
        if (kind := cls.__schema__.type) is None:
            return
        known: Any = cls.__pydantic_generic_metadata__["origin"] or cls
        other = self._by_type.setdefault(kind, known)
        if other is not known:
            raise ConfigurationError(
                f"event type {kind!r} is used twice: by {other.__module__}.{other.__qualname__} "
                f"and by {cls.__module__}.{cls.__qualname__}"
            )

    def get(self, kind: str) -> type[Event] | None:
        """Return the class of a type, or None."""
        return self._by_type.get(kind)

    def concrete(self, cls: type[Event]) -> tuple[type[Event], ...]:
        """Return what a handler that names `cls` subscribes to: the class, or a base's registered subclasses."""
        if cls.__schema__.type is not None:
            return (cls,)
        return tuple(known for known in self if issubclass(known, cls))


def encode(event: Event) -> bytes:
    """Return the event's fields as JSON, by the names that `decode` reads: a field's alias where it has one.

    Raises ConfigurationError where it holds more than its fields are declared to hold.
    """
    check_held(event)
    return event.__pydantic_serializer__.to_json(event, by_alias=True)


def decode(cls: type[E], body: bytes, version: int | None = None) -> E:
    """Read a body as an event of `cls`; `version` None means the class's own.

    Raises Undecodable, which lists every field error, and UnknownVersion for a version that is newer than the class
    or older than its upcasts reach.
    """
    schema = cls.__schema__
    try:
        if version is None or version == schema.version:
            return cls.__pydantic_validator__.validate_json(body)  # type: ignore[no-any-return]
        return cls.__pydantic_validator__.validate_json(_upcasted(cls, body, version))  # type: ignore[no-any-return]
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors(include_url=False)]
        raise Undecodable(f"the body is not a valid {schema.type} (version {schema.version})", lines) from error


def decode_known(classes: dict[str, type[Event]], kind: str, body: bytes, version: int | None) -> Event:
    """Read a body as the event of its type among `classes`; raises UnknownType beside what `decode` raises."""
    cls = classes.get(kind)
    if cls is None:
        raise UnknownType(f"no event of type {kind!r} is known to this handler; it knows {', '.join(sorted(classes))}")
    return decode(cls, body, version)


def type_of(cls: type[Event]) -> str:
    """Return the type that events of this class are published under.

    Raises ConfigurationError for a base, and for what is no event class at all.
    """
    if not issubclass(cls, Event):
        raise ConfigurationError(_no_event(cls))
    if (kind := cls.__schema__.type) is None:
        raise ConfigurationError(f"{cls.__name__} has no type=, so it is a base and cannot be published")
    return kind


def _no_event(cls: type) -> str:
    told = f"publish: it takes events, one by one, and it got a {cls.__name__}"
    if issubclass(cls, type):
        return "publish: it takes events, and it got a class: make one of it, such as OrderPlaced(order_id=…)"
    if issubclass(cls, Data):
        return f"{told}, which is Data, a value inside of events: subclass Event, and give it type="
    if issubclass(cls, Iterable) and not issubclass(cls, str | bytes | Mapping):
        return f"{told}: write publish(*events) where there are several"
    return f"{told}: make an event of it, such as OrderPlaced(order_id=…)"


def _upcasted(cls: type[Event], body: bytes, version: int) -> bytes:
    schema = cls.__schema__
    if version > schema.version:
        raise UnknownVersion(f"{schema.type} version {version} is newer than the version {schema.version} known here")
    try:
        data: Any = from_json(body)
    except ValueError as error:
        raise Undecodable(f"the body of {schema.type} is not JSON", [str(error)]) from error
    if not isinstance(data, dict):
        raise Undecodable(f"the body of {schema.type} is not a JSON object")
    for step in range(version, schema.version):
        if step not in schema.upcasts:
            raise UnknownVersion(f"{schema.type} version {version}: no upcast leads from version {step} to {step + 1}")
        try:
            data = schema.upcasts[step](data)
            if not isinstance(data, dict):
                raise TypeError(f"it returned {type(data).__qualname__}, not a dict")
        except Exception as error:
            raise Undecodable(f"the upcast of {schema.type} from version {step} failed", [repr(error)]) from error
    try:
        # through JSON again, so that each version is read by the same rules
        return to_json(data)
    except ValueError as error:
        raise Undecodable(f"the upcasts of {schema.type} returned what JSON cannot hold", [str(error)]) from error
