"""Services: what is wrong with them is told when they are built, with the place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from bus import ConfigurationError, Context, Event, Message, Queue, Service
from bus.service import check


class Placed(Event, type="order.placed"):
    pass


class Pool: ...


class Session: ...


def no_parameter() -> None: ...
def no_annotation(event: Placed, pool) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
def many(event: Placed, *pools: Pool) -> None: ...
async def fine(event: Placed, context: Context, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("sources", "options", "function", "told"),
    [
        ((), {}, fine, "event classes"),
        ((Placed, "order.#"), {}, fine, "not both"),
        (("order.#ish",), {}, fine, "whole words"),
        ((int,), {}, fine, "event classes"),
        ((Placed,), {"timeout": 0}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": timedelta(minutes=26)}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": None}, fine, "at most 25 minutes"),
        ((Placed,), {"concurrency": 0}, fine, "concurrency=0"),
        ((Placed,), {"name": "dead"}, fine, "own queues"),
        ((Placed,), {}, no_parameter, "first parameter"),
        ((Placed,), {}, no_annotation, "'pool' has no annotation"),
        ((Placed,), {}, many, "one by one"),
    ],
)
def test_a_handler_that_cannot_be_is_refused(
    sources: tuple[Any, ...], options: dict[str, Any], function: Callable[..., Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Service("shop").on(*sources, **options)(function)


def test_a_queue_has_a_name_that_amqp_takes() -> None:
    with pytest.raises(ConfigurationError, match="größe"):
        Queue("größe")


def test_two_of_one_name_are_told_with_both_places() -> None:
    first, second = Service("shop"), Service("shop")
    first.on(Placed)(fine)
    first.on(Placed)(fine)
    with pytest.raises(ConfigurationError) as raised:
        check([first, second])
    services, handlers = raised.value.problems
    assert "two services have the name 'shop'" in services
    assert handlers.count("test_service.py:") == 2


def resource_problems(*resources: Callable[..., Any], per: str = "worker") -> str:
    service = Service("shop")
    for resource in resources:
        service.resource(per="delivery" if resource.__name__.startswith("each") else "worker")(resource)
    with pytest.raises(ConfigurationError) as raised:
        check([service])
    return str(raised.value)


async def pool(session: Session) -> AsyncIterator[Pool]:
    yield Pool()


async def session(pool: Pool) -> AsyncIterator[Session]:
    yield Session()


async def each_session() -> AsyncIterator[Session]:
    yield Session()


async def another_pool() -> AsyncIterator[Pool]:
    yield Pool()


def test_resources_that_do_not_fit_together_are_told() -> None:
    assert "nobody provides Session" in resource_problems(pool)
    assert "in a circle: Pool, Session" in resource_problems(pool, session)
    assert "it lives as long as the worker, Session does not" in resource_problems(pool, each_session)
    assert "two resources yield Pool" in resource_problems(another_pool, another_pool)


@pytest.mark.parametrize(
    ("function", "told"),
    [(lambda: None, "async generator"), (fine, "async generator")],
)
def test_a_resource_is_an_async_generator(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Service("shop").resource(function)


def test_a_handler_that_wants_what_nobody_provides_is_told_with_its_place() -> None:
    service = Service("shop")

    @service.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None: ...

    with pytest.raises(ConfigurationError, match=r"test_service\.py:\d+\): nobody provides Pool for 'pool'"):
        check([service])
    check([service], provided=[Pool])
