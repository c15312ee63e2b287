"""Fields of events and of Data: what they may be declared as, and whether all that they hold is sent."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, Json, PlainSerializer, Secret, SecretBytes, SecretStr, SerializeAsAny, WrapSerializer
from pydantic_core import from_json

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
    if not any(model.__subclasses__() for model in _nested(cls)):
        _EXACT.add(cls)
    elif lost := next(_lost(_sent(data), _sent(data, serialize_as_any=True)), None):
        raise ConfigurationError(
            f"{cls.__name__}{lost} would not be sent: what has it is of a class with more fields than its field is "
            "declared with; declare that class too, the larger one first, as in `Sub | Base`, or give it a Base"
        )


def _sent(data: BaseModel, **how: Any) -> Any:
    return from_json(data.__pydantic_serializer__.to_json(data, by_alias=True, warnings="none", **how))


def _lost(sent: Any, whole: Any, place: str = "") -> Iterator[str]:
    """Return the places of what the whole has, and what is sent has not."""
    if isinstance(sent, dict) and isinstance(whole, dict):
        yield from (f"{place}.{name}" for name in whole if name not in sent)
        for name in sent.keys() & whole.keys():
            yield from _lost(sent[name], whole[name], f"{place}.{name}")
    elif isinstance(sent, list) and isinstance(whole, list):
        for number, (one, other) in enumerate(zip(sent, whole, strict=False)):
            yield from _lost(one, other, f"{place}[{number}]")


@lru_cache(maxsize=1024)
def _nested(cls: type[BaseModel]) -> tuple[type, ...]:
    """Return the models and dataclasses that the fields of a class are declared to hold, however deep."""
    found: dict[type, None] = {}
    waiting: list[type[BaseModel]] = [cls]
    while waiting:
        held = waiting.pop()
        parts = [part for name in held.__pydantic_fields__ for part in _parts_of(held, name)]
        fresh = [part for part in parts if _is_model(part) and part not in found]
        found |= dict.fromkeys(fresh)
        waiting += [each for each in fresh if issubclass(each, BaseModel)]
    return tuple(found)


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
