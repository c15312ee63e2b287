"""What a handler takes and returns is held against what it subscribes to, when it is declared."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NoReturn, Optional, Protocol, TypedDict, TypeVar

import pytest

from bus import ConfigurationError, Data, Event, Message, Queue, Service


T = TypeVar("T")


class Placed(Event, type="order.placed"):
    pass


class Cancelled(Event, type="order.cancelled"):
    pass


class Late(Placed):
    pass


class Offer(Event):
    pass


class Quoted(Offer, type="quote.given"):
    pass


class Page(Event, Generic[T], type="page"):
    item: T


class Line(Data):
    pass


class Typed(TypedDict):
    id: str


class HasId(Protocol):
    id: str


def handler(taken: Any, returned: Any = None) -> Callable[..., Any]:
    async def work(given: Any) -> Any: ...

    work.__annotations__ |= {"given": taken, "return": returned}
    return work


@pytest.mark.parametrize("make", [lambda work: work, functools.partial, staticmethod], ids=["function", "partial", "s"])
def test_on_without_its_parentheses_is_told_at_once(make: Callable[..., Any]) -> None:
    service = Service("shop")
    work: Any = handler(Placed)
    with pytest.raises(ConfigurationError, match=r"@shop\.on needs the events .* write @shop\.on\(…\)"):
        service.on(make(work))
    with pytest.raises(ConfigurationError, match=rf"\.work \({__file__}:\d+\): @shop\.on needs the events"):
        service.on(work)
    assert service.handlers == []


def test_upcast_without_its_parentheses_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"Placed\.upcast\(<function .*: it takes the version .*upcast\(1\)"):
        Placed.upcast(lambda data: data)  # type: ignore[arg-type, type-var]


@pytest.mark.parametrize(
    ("sources", "taken"),
    [
        ((Placed,), Placed),
        ((Placed,), Event),
        ((Placed,), Any),
        ((Placed,), object),
        ((Placed,), T),
        ((Placed,), HasId),
        ((Placed,), Typed),
        ((Placed,), "Placed | None"),
        ((Placed,), Optional[Placed]),  # noqa: UP045
        ((Late,), Placed),
        ((Offer,), Quoted),
        ((Offer,), Offer),
        ((Page,), Page[int]),
        ((Page[int],), Page),
        ((Placed, Cancelled), Placed | Cancelled),
        ((Placed, Cancelled), Event),
        (("order.#", Queue("theirs")), Message),
        (("order.#",), "Message | Placed"),
    ],
    ids=str,
)
def test_a_handler_may_take_what_it_subscribes_to(sources: tuple[Any, ...], taken: Any) -> None:
    service = Service("shop")
    service.on(*sources)(handler(taken))
    assert len(service.handlers) == 1


@pytest.mark.parametrize(
    ("sources", "taken", "told"),
    [
        (
            (Placed,),
            Cancelled,
            "hands it Placed, which .*`given: Cancelled`, does not take; annotate it `given: Placed`",
        ),
        ((Placed,), Late, "annotate it `given: Placed`"),
        ((Placed,), Line, "annotate it `given: Placed`"),
        ((Placed,), dict, "annotate it `given: Placed`"),
        ((Placed,), dict[str, str], "annotate it `given: Placed`"),
        ((Placed,), "Cancelled | None", "annotate it `given: Placed`"),
        ((Placed,), Message, "`given: Placed`, and ask for the Message by another parameter"),
        ((Placed, Cancelled), Placed, "hands it Cancelled, which .*annotate it `given: Placed | Cancelled`"),
        ((Offer,), Placed, "annotate it `given: Offer`"),
        ((Page[str],), Page[int], r"annotate it `given: Page\[str\]`"),
        (("order.#",), Placed, r"annotate it `given: Message`, or name event classes in on\(…\)"),
        ((Queue("theirs"),), bytes, "annotate it `given: Message`"),
    ],
    ids=str,
)
def test_a_handler_that_takes_something_else_is_refused(sources: tuple[Any, ...], taken: Any, told: str) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=rf"\.work \({__file__}:\d+\): .*{told}"):
        service.on(*sources)(handler(taken))
    assert service.handlers == []


@pytest.mark.parametrize(
    "returned",
    [
        None,
        Any,
        object,
        NoReturn,
        T,
        Event,
        Offer,
        Cancelled | None,
        list,
        list[Cancelled],
        tuple[Cancelled, ...],
        tuple[()],
        tuple[Cancelled, Quoted] | None,
        Sequence[Event],
        Iterable[Event],
        Awaitable[None],
        "Cancelled | list[Cancelled]",
    ],
    ids=str,
)
def test_a_handler_may_return_events(returned: Any) -> None:
    service = Service("shop")
    service.on(Placed)(handler(Placed, returned))
    assert len(service.handlers) == 1


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (int, "int"),
        (bool, "bool"),
        (str | None, "str"),
        ("Cancelled | str", "str"),
        (Line, "Line"),
        (Message, "Message"),
        (dict[str, Any], r"dict\[str, .*Any\]"),
        (set[Cancelled], r"set\[.*Cancelled\]"),
        (list[int], r"int in list\[int\]"),
        (tuple[Cancelled, str], r"str in tuple\[.*Cancelled, str\]"),
        (tuple[Cancelled, Quoted | None], r"None in tuple\[.*Cancelled, .*Quoted \| None\]"),
        (tuple[Cancelled, None], r"None in tuple\[.*Cancelled, None\]"),
        (list[Optional[Cancelled]] | None, r"None in list\[.*Cancelled.*\]"),  # noqa: UP045
        (list[list[Cancelled]], r"list\[.*Cancelled\] in list\[list\[.*Cancelled\]\]"),
        (Iterator[Cancelled], r".*Iterator\[.*Cancelled\]"),
        (AsyncIterator[Cancelled], r".*AsyncIterator\[.*Cancelled\]"),
    ],
    ids=str,
)
def test_a_handler_that_returns_what_nobody_publishes_is_refused(returned: Any, named: str) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=rf"\.work \({__file__}:\d+\): it returns {named}, which cannot be"):
        service.on(Placed)(handler(Placed, returned))
    assert service.handlers == []


def test_what_a_decorator_wraps_says_nothing_of_what_the_decorator_takes() -> None:
    def parsed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def work(message: Message) -> None:
            await function(Placed())

        return work

    service = Service("shop")
    service.on("order.#")(parsed(handler(Placed, int)))
    assert len(service.handlers) == 1
