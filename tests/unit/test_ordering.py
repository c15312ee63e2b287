"""What a handler may be ordered by, and which key a message has by it."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AliasChoices, AwareDatetime, BeforeValidator, Field, field_validator

from bus import ConfigurationError, Event, Message, Queue, Service, exponential, fixed, immediate
from bus.ordering import keyed


class Colour(Enum):
    RED = "red"


class Placed(Event, type="order.placed", version=2):
    order_id: UUID
    customer: str | None = None
    colour: Colour = Colour.RED
    place: str = Field(default="", alias="at")

    @field_validator("customer")
    @classmethod
    def known(cls, customer: str | None) -> str | None:
        if customer == "broken":
            raise LookupError
        return customer


class Shipped(Event, type="order.shipped"):
    order_id: UUID


class Returned(Event, type="order.returned"):
    number: Annotated[int, Field(gt=0)]
    code: str = Field("none", validation_alias=AliasChoices("c", "k"))
    ean: Annotated[str, BeforeValidator(str.strip)] = ""


@Placed.upcast(1)
def from_the_first(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["id"]}


ID = "6F9619FF-8B86-D011-B42D-00C04FC964FF"


async def work(event: Any) -> None: ...


def declared(*sources: Any, **options: Any) -> Service:
    service = Service("shop")
    service.on(*sources, **options)(work)
    return service


def message(body: str, type: str = "order.placed", version: int | None = 2, **changed: Any) -> Message:
    return Message(
        id="1", type=type, version=version, source="/t", time=datetime.now(UTC), body=body.encode(), **changed
    )


def key(body: str, by: str = "order_id", **changed: Any) -> Hashable:
    known: dict[str, type[Event]] = {"order.placed": Placed}
    if by == "order_id":
        known["order.shipped"] = Shipped
    return keyed(known, by, 1_000)(message(body, **changed))


@pytest.mark.parametrize(
    ("sources", "options", "told"),
    [
        ((Placed,), {"ordered_by": "id"}, "Placed has no such field; it has order_id, customer, colour, place"),
        ((Placed, Returned), {"ordered_by": "order_id"}, "Returned has no such field; it has number, code, ean"),
        ((Placed,), {"ordered_by": ""}, "Placed has no such field"),
        (("order.#",), {"ordered_by": "order_id"}, "ordered by one of key, subject, correlation_id"),
        ((Queue("theirs"),), {"ordered_by": "body"}, "ordered by one of key, subject, correlation_id"),
        ((Placed,), {"ordered_window": 5}, "ordered_window=5 is for ordered handlers; give ordered_by= too"),
        ((Placed,), {"ordered_by": "order_id", "ordered_window": 0}, "ordered_window=0; it must be 1 to 10,000"),
        ((Placed,), {"ordered_by": "order_id", "ordered_window": 10_001}, "ordered_window=10001; it must be 1 to"),
        ((Placed,), {"ordered_by": "order_id", "retry": fixed(6, 300)}, "may sum to 25.0 minutes"),
        ((Placed,), {"ordered_by": "order_id", "retry": exponential(9, limit=300)}, "by fewer attempts or a lower"),
    ],
)
def test_what_cannot_be_ordered_is_refused_with_its_place(sources: Any, options: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        declared(*sources, **options)
    assert f"{__name__}.work ({__file__}:" in str(raised.value)


def test_an_ordered_handler_has_its_key_and_its_window() -> None:
    (handler,) = declared(Placed, Shipped, ordered_by="order_id", retry=fixed(5, 300)).handlers
    assert (handler.ordered_by, handler.ordered_window) == ("order_id", 1_000)
    (handler,) = declared("order.#", Queue("theirs"), ordered_by="key", ordered_window=1).handlers
    assert (handler.ordered_by, handler.ordered_window) == ("key", 1)
    (handler,) = declared(Placed).handlers
    assert handler.ordered_by is None


def test_only_an_ordered_subscription_is_ordered_and_it_needs_no_steps() -> None:
    from bus.discovery import named

    ordered, plain = declared(Placed, ordered_by="order_id"), declared(Placed)
    first, second = (s.handlers[0].subscription(named([s])) for s in (ordered, plain))
    assert (first.ordered, first.delays) == (True, ())
    assert (second.ordered, len(second.delays)) == (False, 6)


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (immediate(3), 0),
        (fixed(4, 2), 6),
        (exponential(4, first=1, factor=2, jitter=False), 7),
        (exponential(4, first=1, factor=2), 10),  # its jitter may take 2, 4, 4
        (exponential(), 298),
    ],
)
def test_the_longest_that_a_policy_waits_counts_its_jitter(policy: Any, seconds: float) -> None:
    assert policy.longest == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("body", "by", "expected"),
    [
        (f'{{"order_id": "{ID}"}}', "order_id", ID.lower()),
        (f'{{"order_id": "{ID.lower()}"}}', "order_id", ID.lower()),
        (f'{{"order_id": "{ID}", "customer": "c"}}', "customer", "c"),
        (f'{{"order_id": "{ID}", "at": "home"}}', "place", "home"),
        (f'{{"order_id": "{ID}"}}', "customer", None),
        ('{"order_id": 1}', "order_id", None),
        ("garbage", "order_id", None),
        (f'{{"order_id": "{ID}", "note": "{"x" * 1000}"}}', "order_id", None),
        # the policy decides what becomes of it, and what comes later waits
        (f'{{"order_id": "{ID}", "customer": "broken"}}', "order_id", ID.lower()),
    ],
)
def test_the_key_is_the_fields_value_as_the_event_has_it(body: str, by: str, expected: str | None) -> None:
    assert key(body, by) == expected


@pytest.mark.parametrize(
    ("body", "by", "expected"),
    [
        ('{"number": "7"}', "number", "7"),
        ('{"number": 7, "other": {"deep": [1]}}', "number", "7"),
        ('{"number": 0}', "number", None),
        ('{"number": 7, "k": "x"}', "code", "x"),
        ('{"number": 7}', "code", "none"),
        ('{"number": 7, "ean": " 4 "}', "ean", "4"),
        ('{"number": 7', "number", None),
        ('{"number": 7, "ean": 4}', "ean", None),
    ],
)
def test_the_field_is_read_alone_and_yet_as_the_event_has_it(body: str, by: str, expected: str | None) -> None:
    known = {"order.returned": Returned}
    assert keyed(known, by, 1_000)(message(body, "order.returned", 1)) == expected
    if expected is not None:
        assert str(getattr(Returned.model_validate_json(body), by)) == expected


class Weighed(Event, type="parcel.weighed"):
    number: int | str | UUID = 0
    exact: Decimal = Decimal(0)
    rough: float = 0
    mixed: bool | int | float = 0
    at: AwareDatetime | None = None
    parts: frozenset[int] = frozenset()
    place: tuple[str, float] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("by", "spellings", "another"),
    [
        ("number", ("1", '"1"'), '"01"'),
        ("number", (f'"{ID}"', f'"{ID.lower()}"', f'"urn:uuid:{ID}"'), f'"{ID[:-1]}0"'),
        ("exact", ("1", "1.0", '"1.00"', "1e0"), "1.5"),
        ("exact", ("1.5", '"1.50"'), "1"),
        ("exact", ('"1e999999"', '"10e999998"'), '"1e-999999"'),
        ("rough", ("0.0", "-0.0", "0"), "0.5"),
        ("mixed", ("1", "1.0", "true"), "false"),
        ("at", ('"2026-01-01T00:00:00Z"', '"2026-01-01T01:00:00+01:00"', "1767225600"), '"2026-01-01T00:00:00.1Z"'),
        ("parts", ("[1, 8, 16]", "[16, 8, 1]", "[8, 1, 16, 1]"), "[1, 8]"),
        ("place", ('["a", 1]', '["a", 1.0]'), '["b", 1]'),
        ("anything", ('{"a": [1]}', '{"a":[1]}'), '{"a": [2]}'),
    ],
)
def test_equal_values_are_one_key_however_they_are_spelled(by: str, spellings: tuple[str, ...], another: str) -> None:
    key_of = keyed({"parcel.weighed": Weighed}, by, 1_000)
    keys = {key_of(message(f'{{"{by}": {spelling}}}', "parcel.weighed", 1)) for spelling in spellings}
    assert len(keys) == 1
    assert None not in keys
    assert key_of(message(f'{{"{by}": {another}}}', "parcel.weighed", 1)) not in keys | {None}


class Hue(Enum):
    RED = "red"


class Painted(Event, type="wall.painted"):
    colour: Hue


def test_one_value_of_two_enums_is_one_key() -> None:
    key_of = keyed({"order.placed": Placed, "wall.painted": Painted}, "colour", 1_000)
    placed = f'{{"order_id": "{ID}", "colour": "red"}}'
    assert (
        key_of(message(placed, "order.placed", 2)) == key_of(message('{"colour": "red"}', "wall.painted", 1)) == "red"
    )


def test_an_older_version_has_the_key_of_what_it_becomes() -> None:
    assert key(f'{{"id": "{ID}"}}', version=1) == ID.lower()


@pytest.mark.parametrize(("type", "version"), [("order.placed", 3), ("order.unheard_of", 1)])
@pytest.mark.parametrize(
    ("body", "by", "expected"),
    [
        (f'{{"order_id": "{ID}", "new": true}}', "order_id", ID.lower()),
        ('{"order_id": "of another kind"}', "order_id", None),
        ('{"colour": "red"}', "colour", "red"),
        ('{"at": "home"}', "place", "home"),
        ('{"customer": null}', "customer", None),
        ('{"customer": "c"}', "customer", "c"),
        ("{}", "order_id", None),
        ("[]", "order_id", None),
        ("garbage", "order_id", None),
    ],
)
def test_what_waits_for_a_deploy_has_its_key_from_the_raw_body(
    type: str, version: int, body: str, by: str, expected: str | None
) -> None:
    known = {"order.placed": Placed}
    assert keyed(known, by, 1_000)(message(body, type, version)) == expected


def test_a_handler_of_messages_is_ordered_by_an_attribute() -> None:
    by = keyed(None, "key", 1_000)
    assert (by(message("", key="k")), by(message(""))) == ("k", None)
    assert keyed(None, "type", 1_000)(message("")) == "order.placed"
