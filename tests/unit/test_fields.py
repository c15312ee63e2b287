"""Fields: what would come out otherwise than it went in is refused, in the class or as it is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import (
    Json,
    PlainSerializer,
    Secret,
    SecretBytes,
    SecretStr,
    SerializeAsAny,
    field_serializer,
    model_serializer,
)

from bus import ConfigurationError, Data, Event
from bus.event import decode, encode


def event_with(annotation: Any, **methods: Any) -> Any:
    """Build an event class with one field."""
    return type(Event)(
        "Built", (Event,), {"__annotations__": {"item": annotation}, "__module__": __name__, **methods}, type="x"
    )


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (SecretStr, "a SecretStr is published as asterisks; use str"),
        (SecretBytes | None, "a SecretBytes is published as asterisks"),
        (tuple[Secret[int], ...], "a Secret is published as asterisks"),
        (Json, "Json is published parsed, and no reader takes it so; use str"),
        (Json[int] | None, "Json is published parsed"),
        (Annotated[Json[int], "the field's own"], "Json is published parsed"),
    ],
)
def test_a_field_that_comes_out_otherwise_is_refused(annotation: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Built\.item: {told}"):
        event_with(annotation)


def revealed(secret: SecretStr) -> str:
    return secret.get_secret_value()


@pytest.mark.parametrize(
    "built",
    [
        event_with(Annotated[SecretStr, PlainSerializer(revealed)]),
        event_with(SecretStr, reveal=field_serializer("item")(lambda self, item: revealed(item))),
        event_with(SecretStr, reveal=field_serializer("*")(lambda self, item: revealed(item))),
        event_with(SecretStr, reveal=model_serializer(lambda self: {"item": revealed(self.item)})),
    ],
)
def test_a_field_with_a_serializer_of_its_own_is_taken(built: Any) -> None:
    assert decode(built, encode(built(item="hush"))).item == SecretStr("hush")


class Base(Data):
    a: int = 0


class Sub(Base):
    b: int


class Same(Base):
    """One that has no more than its base."""


class Twin(Sub):
    """One that has no more than a base that has a base."""


class Shape(Data):
    @model_serializer(mode="plain")
    def whole(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Circle(Shape):
    radius: int


class Outer(Data):
    inner: Base


@dataclass(frozen=True)
class Point:
    x: int = 0


@dataclass(frozen=True)
class Dot(Point):
    size: int = 1


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (Base, Sub(b=2)),
        (Base | None, Sub(b=2)),
        (tuple[Base, ...], (Base(), Sub(b=2))),
        (Mapping[str, Base], {"one": Sub(b=2)}),
        (frozenset[Base], frozenset({Sub(b=2)})),
        (Base | Same, Sub(b=2)),
    ],
)
def test_a_value_with_more_fields_than_it_is_declared_with_is_not_published(annotation: Any, item: Any) -> None:
    told = r"^Built\.item(\[[01]\]|\.one)?\.b would not be sent: .* declare that class too"
    event = event_with(annotation)(item=item)
    with pytest.raises(ConfigurationError, match=told):
        encode(event)
    with pytest.raises(ConfigurationError, match=told):
        event_with(annotation | int)(item=1).model_copy(update={"item": item})


def test_the_same_deep_inside_and_of_a_dataclass() -> None:
    with pytest.raises(ConfigurationError, match=r"^Built\.item\[0\]\.inner\.b would not be sent"):
        encode(event_with(tuple[Outer, ...])(item=(Outer(inner=Sub(b=2)),)))
    with pytest.raises(ConfigurationError, match=r"^Built\.item\.size would not be sent"):
        encode(event_with(Point)(item=Dot()))


@pytest.mark.parametrize(
    ("annotation", "item", "sent"),
    [
        (Base, Base(a=1), {"a": 1}),
        (Base, Same(a=1), {"a": 1}),
        (Sub | Base, Sub(a=1, b=2), {"a": 1, "b": 2}),
        (SerializeAsAny[Base], Sub(a=1, b=2), {"a": 1, "b": 2}),
        (Any, Sub(a=1, b=2), {"a": 1, "b": 2}),
        (Base | str, "text", "text"),
        (Sub | Base, Twin(a=1, b=2), {"a": 1, "b": 2}),
        (Shape, Circle(radius=4), {"radius": 4}),
    ],
)
def test_what_is_sent_as_it_is_held_is_published(annotation: Any, item: Any, sent: Any) -> None:
    assert json.loads(encode(event_with(annotation)(item=item))) == {"item": sent}


def test_a_class_that_is_built_later_is_looked_at_too() -> None:
    class Early(Data):
        a: int = 0

    holder = event_with(Early)
    assert encode(holder(item=Early())) == b'{"item":{"a":0}}'

    class Late(Early):
        b: int = 1

    with pytest.raises(ConfigurationError, match=r"^Built\.item\.b would not be sent"):
        encode(holder(item=Late()))


def test_a_type_that_holds_itself_is_looked_at_once() -> None:
    assert encode(Tree(trees=(Tree(), Tree()))) == b'{"trees":[{"trees":[]},{"trees":[]}]}'
    with pytest.raises(ConfigurationError, match=r"^Tree\.trees\[0\]\.trees\[0\]\.age would not be sent"):
        encode(Tree(trees=(Tree(trees=(Oak(),)),)))


class Tree(Event, type="tree"):
    trees: tuple[Tree, ...] = ()


class Oak(Tree):
    age: int = 100
