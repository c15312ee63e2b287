"""Fields of events and of Data: what they may be declared as, and whether all that they hold is sent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, Json, PlainSerializer, Secret, SecretBytes, SecretStr, SerializeAsAny, WrapSerializer

from .errors import ConfigurationError


_MUTABLE: Final = (MutableSequence, MutableMapping, MutableSet)
_MASKED: Final[tuple[Any, ...]] = (SecretStr, SecretBytes, Secret)
_JSON: Final[Any] = Json
_SERIALIZERS: Final[tuple[Any, ...]] = (PlainSerializer, WrapSerializer, SerializeAsAny)

_EXACT: Final[set[type]] = set()
"""Classes whose fields hold nothing else than they are declared to hold, until there is another class."""


def check_declared(cls: type[BaseModel]) -> None:
    """Raise ConfigurationError for a field whose values could change, or would not come out as they went in."""
    _EXACT.clear()
    for name in cls.__pydantic_fields__:
        for part in _parts_of(cls, name):
            wrong = _changes(part)
            if not wrong and not _has_serializer(cls, name):
                wrong = _comes_out_otherwise(part)
            if wrong:
                raise ConfigurationError(f"{cls.__name__}.{name}: {wrong}")


def check_held(data: BaseModel) -> None:
    """Raise ConfigurationError for a value whose class has more fields than it is declared with: they would be lost."""
    cls = type(data)
    if cls in _EXACT:
        return
    if any(model.__subclasses__() for model in _nested(cls)):
        _check_each(data)
    else:
        _EXACT.add(cls)


def _check_each(data: BaseModel) -> None:
    for name, declared in _declared(type(data)).items():
        for value in _models_in(getattr(data, name)):
            if type(value) not in declared and (lost := _lost(type(value), declared)):
                raise ConfigurationError(f"{type(data).__name__}.{name}: {lost}")
            if isinstance(value, BaseModel):
                _check_each(value)


def _lost(kind: type, declared: tuple[type, ...]) -> str:
    bases = [base for base in declared if issubclass(kind, base)]
    lost = [field for field in _fields(kind) if not all(field in _fields(base) for base in bases)]
    if not bases or not lost:
        return ""
    name, base = kind.__name__, bases[0].__name__
    return (
        f"it is declared to hold a {base}, and holds a {name}, whose {', '.join(lost)} would not be sent: declare "
        f"{name} | {base}, or give it a {base}"
    )


@lru_cache(maxsize=1024)
def _nested(cls: type[BaseModel]) -> tuple[type, ...]:
    """Return the models and dataclasses that the fields of a class are declared to hold, however deep."""
    found: dict[type, None] = {}
    waiting: list[type[BaseModel]] = [cls]
    while waiting:
        fresh = [each for declared in _declared(waiting.pop()).values() for each in declared if each not in found]
        found |= dict.fromkeys(fresh)
        waiting += [each for each in fresh if issubclass(each, BaseModel)]
    return tuple(found)


@lru_cache(maxsize=1024)
def _declared(cls: type[BaseModel]) -> dict[str, tuple[type, ...]]:
    """Return the models and dataclasses that each field is declared to hold; a serializer sends what it likes."""
    models = {
        name: tuple(part for part in _parts_of(cls, name) if _is_model(part))
        for name in cls.__pydantic_fields__
        if not _has_serializer(cls, name)
    }
    return {name: found for name, found in models.items() if found}


def _parts_of(cls: type[BaseModel], name: str) -> list[Any]:
    info = cls.__pydantic_fields__[name]
    return [*_parts(info.annotation), *info.metadata]


def _parts(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _has_serializer(cls: type[BaseModel], name: str) -> bool:
    decorated = cls.__pydantic_decorators__
    return (
        bool(decorated.model_serializers)
        or any({name, "*"} & {*each.info.fields} for each in decorated.field_serializers.values())
        or any(isinstance(part, _SERIALIZERS) for part in _parts_of(cls, name))
    )


def _changes(part: Any) -> str:
    if isinstance(part, type) and (issubclass(part, _MUTABLE) or not _frozen(part)):
        return f"a {part.__name__} can change after validation; use a tuple, a frozenset, or a Data class"
    return ""


def _comes_out_otherwise(part: Any) -> str:
    if isinstance(part, type) and issubclass(part, _MASKED):
        return f"a {part.__name__} is published as asterisks; use str or bytes, and encrypt what only some may read"
    if part is _JSON or isinstance(part, _JSON):
        return "Json is published parsed, and no reader takes it so; use str, or a Data class or tuple of what is in it"
    return ""


def _frozen(cls: type) -> bool:
    """Tell whether a model or a dataclass is frozen; other classes are believed to be."""
    if issubclass(cls, BaseModel):
        return bool(cls.model_config.get("frozen"))
    return not is_dataclass(cls) or bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and (issubclass(part, BaseModel) or is_dataclass(part))


def _fields(cls: Any) -> Collection[str]:
    fields: Mapping[str, Any] = cls.__pydantic_fields__ if issubclass(cls, BaseModel) else cls.__dataclass_fields__
    return fields


def _models_in(value: Any) -> Iterator[Any]:
    if _is_model(type(value)):
        yield value
    elif isinstance(value, Collection) and not isinstance(value, str | bytes):
        for each in value:
            yield from _models_in(each)
        if isinstance(value, Mapping):
            yield from _models_in(tuple(value.values()))
