"""Events: frozen, checked when the class is built, upcast from older versions."""

from __future__ import annotations

import collections
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Base64Bytes, BaseModel, Field, PrivateAttr, ValidationError

from bus import ConfigurationError, Data, Event, Events, Undecodable
from bus.errors import UnknownType, UnknownVersion
from bus.event import decode, decode_known, encode


T = TypeVar("T")


class Line(Data):
    sku: str
    quantity: int


class Placed(Event, type="order.placed", version=3):
    order_id: str
    lines: tuple[Line, ...]
    note: str = ""


@Placed.upcast(1)
def one_line_becomes_a_list(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "items": [data["line"]]}


@Placed.upcast(2)
def items_are_lines(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "lines": data["items"]}


class Odd(Event, type="odd"):
    type: str
    version: int
    id: str
    model_name: str


class Page(Event, Generic[T], type="page"):
    item: T


def test_an_event_goes_out_and_comes_back() -> None:
    placed = Placed(order_id="1", lines=(Line(sku="tea", quantity=2),))
    assert decode(Placed, encode(placed)) == placed


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Placed(order_id="1", lines=()).order_id = "2"  # type: ignore[misc]


class Booked(Event, type="booked"):
    room: Annotated[int, Field(gt=0, alias="roomNumber")] = 1
    guests: tuple[Line, ...] = ()
    photo: Base64Bytes = b""
    price: float | None = None
    anything: Any = None
    _seen: int = PrivateAttr(default=0)


@pytest.mark.parametrize(
    "update",
    [
        {"room": -5},
        {"room": "x"},
        {"room": None},
        {"guests": ({"sku": 1},)},
        {"guests": [1]},
        {"price": float("nan")},
        {"price": float("inf")},
        {"photo": b"\xff", "room": 0},
    ],
)
def test_a_copy_that_is_not_valid_is_refused_as_a_new_event_would_be(update: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="validation error"):
        Booked(roomNumber=7).model_copy(update=update)


@pytest.mark.parametrize("deep", [False, True])
def test_a_changed_copy_is_an_event_of_its_class_with_the_rest_as_it_was(deep: bool) -> None:
    booked = Booked(roomNumber=7, photo=b"YWJjZA==", anything=(1, 2))
    booked._seen = 3
    copied = booked.model_copy(update={"guests": [{"sku": "tea", "quantity": "2"}], "none": 1}, deep=deep)
    assert copied.guests == (Line(sku="tea", quantity=2),)
    assert (copied.room, copied.photo, copied.anything, copied._seen) == (7, b"abcd", (1, 2), 3)
    assert (type(copied), hasattr(copied, "none"), booked.guests) == (Booked, False, ())
    assert decode(Booked, encode(copied)).guests == copied.guests
    assert copied.model_copy(update={"photo": b"\xff", "room": 8}).photo == b"\xff"
    assert booked.model_copy(deep=deep) == booked
    with pytest.raises(ValidationError, match="frozen"):
        copied.room = 2  # type: ignore[misc]


def test_unknown_fields_are_ignored() -> None:
    assert decode(Placed, b'{"order_id": "1", "lines": [], "added": true}', 3) == Placed(order_id="1", lines=())


def test_every_field_error_is_listed() -> None:
    with pytest.raises(Undecodable) as raised:
        decode(Placed, b'{"lines": [{"sku": 1, "quantity": "x"}]}')
    assert [line.partition(":")[0] for line in raised.value.errors] == ["order_id", "lines.0.sku", "lines.0.quantity"]


@pytest.mark.parametrize("version", [1, 2, 3, None])
def test_older_versions_are_brought_up_step_by_step(version: int | None) -> None:
    bodies = {
        1: b'{"order_id": "1", "line": {"sku": "tea", "quantity": 2}}',
        2: b'{"order_id": "1", "items": [{"sku": "tea", "quantity": 2}]}',
    }
    body = bodies.get(version or 3, b'{"order_id": "1", "lines": [{"sku": "tea", "quantity": 2}]}')
    assert decode(Placed, body, version) == Placed(order_id="1", lines=(Line(sku="tea", quantity=2),))


def test_a_newer_version_and_one_without_a_way_are_unknown() -> None:
    class Gap(Event, type="gap", version=3):
        n: int

    with pytest.raises(UnknownVersion, match="newer than the version 3"):
        decode(Placed, b"{}", 4)
    with pytest.raises(UnknownVersion, match="no upcast leads from version 1 to 2"):
        decode(Gap, b"{}", 1)


@pytest.mark.parametrize(("body", "told"), [(b"{", "not JSON"), (b"[]", "not a JSON object"), (b"{}", "upcast")])
def test_an_old_body_that_cannot_be_brought_up_is_undecodable(body: bytes, told: str) -> None:
    with pytest.raises(Undecodable, match=told):
        decode(Placed, body, 1)


def test_a_type_that_the_handler_does_not_know_is_named() -> None:
    with pytest.raises(UnknownType, match=r"order\.lost.*order\.placed"):
        decode_known({"order.placed": Placed}, "order.lost", b"{}", 1)


def test_fields_may_have_any_name() -> None:
    odd = Odd(type="t", version=1, id="i", model_name="m")
    assert decode(Odd, encode(odd)) == odd
    assert Odd.__schema__.type == "odd"


def test_a_generic_event_has_the_type_of_its_origin() -> None:
    assert Page[int].__schema__.type == "page"
    assert decode(Page[int], b'{"item": 3}').item == 3


def test_a_class_keyword_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="unknown class keyword 'vers'"):

        class Wrong(Event, type="x", vers=2):  # type: ignore[call-arg]
            pass


class Loose(BaseModel):
    street: str


class Stiff(BaseModel, frozen=True):
    street: str


@dataclass
class Open:
    street: str


@dataclass(frozen=True)
class Closed:
    street: str


@pytest.mark.parametrize("annotation", [socket.socket, bytearray], ids=repr)
def test_a_field_that_no_event_can_hold_is_told_in_a_line(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^class Built: .*: fields are what JSON can hold.*$"):
        event_with(annotation)


def event_with(annotation: Any) -> Any:
    """Build an event class with one field."""
    return type(Event)("Built", (Event,), {"__annotations__": {"items": annotation}, "__module__": __name__}, type="x")


@pytest.mark.parametrize(
    "annotation",
    [
        list[int],
        list,
        dict[str, int],
        set[int],
        tuple[list[int], ...],
        list[int] | None,
        Annotated[list[int], Field(max_length=3)],
        Mapping[str, tuple[dict[str, int], ...]],
        collections.deque[int],
        collections.OrderedDict[str, int],
        collections.defaultdict[str, int],
        MutableMapping[str, int],
        Loose,
        tuple[Loose, ...],
        Open | None,
    ],
)
def test_a_field_that_can_change_is_refused(annotation: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Built\.items: .* can change after validation"):
        event_with(annotation)


@pytest.mark.parametrize(
    "annotation",
    [
        tuple[int, ...],
        frozenset[str],
        Line | None,
        Literal["a", "b"],
        bytes,
        Sequence[int],
        Any,
        Annotated[int, "list"],
        Stiff,
        Closed,
    ],
)
def test_a_field_that_cannot_change_is_taken(annotation: Any) -> None:
    assert event_with(annotation).__schema__.type == "x"


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"type": "a.*"}, "type='a.\\*'; a type is plain dotted words"),
        ({"type": 3}, "type=3; a type is plain dotted words"),
        ({"type": ""}, "class Wrong: .* 1 to 255"),
        ({"type": "order placed"}, "class Wrong: .*'order placed': it has white space"),
        ({"type": "a", "version": 0}, "version=0; versions count from 1"),
        ({"type": "a", "version": "2"}, "version='2'; versions count from 1"),
    ],
)
def test_a_type_is_plain_words_and_versions_count_from_one(keywords: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        type(Event)("Wrong", (Event,), {"__module__": __name__}, **keywords)


def test_a_type_belongs_to_one_class() -> None:
    class Other(Event, type="order.placed"):
        pass

    with pytest.raises(ConfigurationError, match=r"used twice: by .*Placed and by .*Other"):
        Events([Placed, Other])


def test_two_steps_from_one_version_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two steps"):
        Placed.upcast(1)(lambda data: data)
    with pytest.raises(ConfigurationError, match="the class is version 3"):
        Placed.upcast(3)(lambda data: data)


def test_a_body_that_is_no_object_is_told_as_the_body() -> None:
    with pytest.raises(Undecodable) as raised:
        decode(Placed, b"[1]")
    assert [line.partition(":")[0] for line in raised.value.errors] == ["body"]


class Money(Event, type="money", version=2):
    amount: Decimal
    cents: int
    at: Annotated[datetime, Field(strict=True)]


@Money.upcast(1)
def nothing_changed(data: dict[str, Any]) -> dict[str, Any]:
    return data


@given(cents=st.integers(), amount=st.decimals(allow_nan=False, allow_infinity=False), at=st.datetimes())
def test_an_older_version_is_read_by_the_same_rules_as_the_current_one(
    cents: int, amount: Decimal, at: datetime
) -> None:
    body = encode(Money(amount=amount, cents=cents, at=at.replace(tzinfo=UTC)))
    assert (
        decode(Money, body, 1) == decode(Money, body, 2) == Money(amount=amount, cents=cents, at=at.replace(tzinfo=UTC))
    )


def upcast_by(step: Callable[[dict[str, Any]], Any]) -> Any:
    built = type(Event)("Built", (Event,), {"__annotations__": {"n": int}, "__module__": __name__}, type="x", version=2)
    built.upcast(1)(step)
    return built


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (lambda data: data["missing"], "KeyError"),
        (lambda data: None, "returned NoneType"),
        (lambda data: [data], "returned list"),
        (lambda data: {"n": object()}, "what JSON cannot hold"),
        (lambda data: {"n": "x"}, "n: Input should be a valid integer"),
    ],
)
def test_a_step_that_goes_wrong_makes_the_body_undecodable(step: Callable[[dict[str, Any]], Any], told: str) -> None:
    with pytest.raises(Undecodable, match=told):
        decode(upcast_by(step), b'{"n": 1}', 1)


def test_a_step_may_return_more_than_json_knows() -> None:
    class Parcel(Event, type="parcel", version=2):
        id: UUID
        sent: datetime

    @Parcel.upcast(1)
    def add(data: dict[str, Any]) -> dict[str, Any]:
        return {"id": UUID(int=data["number"]), "sent": datetime(2026, 1, 1, tzinfo=UTC)}

    assert decode(Parcel, b'{"number": 7}', 1) == Parcel(id=UUID(int=7), sent=datetime(2026, 1, 1, tzinfo=UTC))


def test_a_version_before_the_first_is_unknown() -> None:
    with pytest.raises(UnknownVersion, match="no upcast leads from version 0 to 1"):
        decode(Placed, b"{}", 0)


def test_an_alias_is_the_name_on_the_wire() -> None:
    class Aliased(Event, type="aliased"):
        order_id: str = Field(default="none", alias="orderId")

    assert encode(Aliased(orderId="1")) == b'{"orderId":"1"}'
    assert decode(Aliased, encode(Aliased(orderId="1"))).order_id == "1"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have_never_becomes_an_event(number: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        event_with(float)(items=number)


def test_a_base_stands_for_its_registered_subclasses_only() -> None:
    class Base(Event):
        pass

    class One(Base, type="one"):
        pass

    class Two(Base, type="two"):
        pass

    class Unregistered(Base, type="three"):
        pass

    events = Events([Base, One, Two, Placed])
    assert list(events) == [One, Two, Placed]
    assert len(events) == 3
    assert events.concrete(Base) == (One, Two)
    assert events.concrete(Unregistered) == (Unregistered,)
    assert (events.get("one"), events.get("three")) == (One, None)


def test_a_subclass_does_not_inherit_its_parents_type() -> None:
    class Late(Placed):
        reason: str = ""

    assert Late.__schema__.type is None


def test_a_generic_event_and_its_parameters_are_one_type() -> None:
    assert list(Events([Page, Page[int], Page[str]])) == [Page]
    assert list(Events([Page[int]])) == [Page]


def test_an_event_of_one_type_may_be_registered_twice() -> None:
    events = Events([Placed])
    events.add(Placed)
    assert list(events) == [Placed]
