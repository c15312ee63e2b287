"""Services: what is wrong with them is told when they are built, with the place."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bus import (
    App,
    ConfigurationError,
    Context,
    Data,
    Event,
    Events,
    Message,
    Queue,
    Service,
    SqliteStore,
    breaker,
    exponential,
    fixed,
)
from bus.service import DEPLOY_STEP, check
from bus.testing import Tester


class Placed(Event, type="order.placed"):
    pass


class Line(Data):
    pass


class Pool: ...


class Session: ...


def no_parameter() -> None: ...
def no_annotation(event: Placed, pool) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001
def many(event: Placed, *pools: Pool) -> None: ...
def any_name(event: Placed, **pools: Pool) -> None: ...
def by_position(event: Placed, pool: Pool, /) -> None: ...
def no_event(*, event: Placed) -> None: ...
def everything(*events: Placed) -> None: ...
def dead(event: Placed) -> None: ...
def Capital(event: Placed) -> None: ...
def unknown_name(event: Placed, pool: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def yields(event: Placed) -> Iterator[Placed]:
    yield event


async def yields_async(event: Placed) -> AsyncIterator[Placed]:
    yield event


class Called:
    async def __call__(self, event: Placed) -> None: ...


async def fine(event: Placed, context: Context, message: Message) -> None: ...
async def raw(event: Message, context: Context) -> None: ...
async def any_event(event: Event) -> None: ...


@pytest.mark.parametrize(
    ("sources", "options", "function", "told"),
    [
        ((), {}, fine, r"it got none: write on\(OrderPlaced\), or on\(\"order.#\"\)"),
        ((Placed, "order.#"), {}, fine, "but not both: give each a handler of its own"),
        ((Placed, Queue("theirs")), {}, fine, "not both"),
        (("order.#ish",), {}, fine, "whole words"),
        (("order..placed",), {}, fine, "empty word"),
        ((int,), {}, fine, "takes event classes, or .*, and it got int"),
        ((3,), {}, fine, "one by one, and it got 3"),
        (([Placed],), {}, fine, "one by one, and it got "),
        ((Placed, fine), {}, fine, "one by one, and it got "),
        ((Placed(),), {}, fine, r"it got an event: write on\(Placed\)"),
        ((Line,), {}, fine, "Line is Data, .*subclass Event, and give it type="),
        ((Placed,), {"timeout": 0}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": -1}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": 1500.001}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": timedelta(minutes=26)}, fine, "at most 25 minutes"),
        ((Placed,), {"timeout": None}, fine, "at most 25 minutes"),
        ((Placed,), {"concurrency": 0}, fine, "concurrency=0"),
        ((Placed,), {"concurrency": 10_001}, fine, "concurrency=10001"),
        ((Placed,), {"retries": 3}, fine, "no option 'retries'; it has name, retry, timeout"),
        ((Placed,), {"name": "dead"}, fine, "own queues"),
        ((Placed,), {"name": "a.b"}, fine, "starts with a letter"),
        ((Placed,), {"name": "a" * 61}, fine, "up to 60"),
        ((Placed,), {}, dead, "own queues"),
        ((Placed,), {}, Capital, "starts with a letter"),
        ((Placed,), {}, lambda event: None, "starts with a letter"),
        ((Placed,), {}, no_parameter, "first parameter"),
        ((Placed,), {}, no_event, "first parameter"),
        ((Placed,), {}, everything, "first parameter"),
        ((Placed,), {}, no_annotation, "'pool' has no annotation"),
        ((Placed,), {}, many, r"'\*pools: .*one by one"),
        ((Placed,), {}, any_name, r"'\*\*pools: .*one by one"),
        ((Placed,), {}, by_position, "passed by name"),
        ((Placed,), {}, unknown_name, "'Nowhere' is not defined; .*TYPE_CHECKING"),
        ((Placed,), {}, yields, "it yields none"),
        ((Placed,), {}, yields_async, "it yields none"),
    ],
)
def test_a_handler_that_cannot_be_is_refused_with_its_place(
    sources: tuple[Any, ...], options: dict[str, Any], function: Callable[..., Any], told: str
) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=told) as raised:
        service.on(*sources, **options)(function)
    assert f"{function.__qualname__} ({__file__}:{function.__code__.co_firstlineno})" in str(raised.value)
    assert service.handlers == []


@pytest.mark.parametrize(
    "wrong", [functools.partial(fine), Called(), Called, 7], ids=["partial", "instance", "class", "number"]
)
def test_a_handler_is_a_function(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="a handler is a function"):
        Service("shop").on(Placed, name="work")(wrong)


@pytest.mark.parametrize(
    "options",
    [{"idempotent": "yes"}, {"idempotent": 1}, {"timeout": "60"}, {"timeout": float("nan")}, {"concurrency": "4"}],
)
def test_an_option_of_another_type_is_refused_with_its_place(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=rf"test_service\.py:\d+\): {name}={value!r}; it "):
        Service("shop").on(Placed, **options)(fine)


@pytest.mark.parametrize("store", ["a.db", Path("a.db"), SqliteStore, object()])
def test_a_store_that_is_none_is_refused(store: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"service 'shop': store=.* is no store; write store=SqliteStore\(\"shop\.db"
    ):
        Service("shop", store=store)


def test_a_handler_is_what_was_declared_and_its_function_stays_as_it_is() -> None:
    service = Service("shop", concurrency=3)
    assert (
        service.on(Placed, name="work", retry=fixed(2, 1), timeout=timedelta(minutes=25), concurrency=2)(fine) is fine
    )
    (handler,) = service.handlers
    assert (handler.service, handler.name, handler.subscription_name) == ("shop", "work", "shop.work")
    assert (handler.function, handler.events, handler.patterns, handler.queues) == (fine, (Placed,), (), ())
    assert (handler.retry, handler.timeout, handler.concurrency) == (fixed(2, 1), 1500.0, 2)
    assert handler.needs == {"context": Context, "message": Message}


def test_the_defaults_of_a_handler() -> None:
    service = Service("shop")
    service.on("order.#")(raw)
    (handler,) = service.handlers
    assert (service.concurrency, handler.name, handler.patterns) == (16, "raw", ("order.#",))
    assert (handler.retry, handler.timeout, handler.concurrency) == (exponential(), 60.0, None)


def test_a_parameter_with_a_default_and_without_annotation_is_left_alone() -> None:
    def work(event: Placed, times=3) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    service = Service("shop")
    service.on(Placed)(work)
    assert service.handlers[0].needs == {}


def test_a_subscription_has_the_types_of_its_classes_and_a_step_for_deploys() -> None:
    class Base(Event): ...

    class One(Base, type="one"): ...

    class Two(Base, type="two"): ...

    service = Service("shop")
    service.on(Base, Placed, name="typed", retry=fixed(3, 2))(any_event)
    service.on("a.*", Queue("theirs"), retry=fixed(3, DEPLOY_STEP))(raw)
    typed, other = (handler.subscription(Events([One, Two, Placed])) for handler in service.handlers)
    assert (typed.name, typed.patterns, typed.sources) == ("shop.typed", ("one", "two", "order.placed"), ())
    assert typed.delays == (timedelta(seconds=2), timedelta(seconds=10))
    assert (other.name, other.patterns, other.sources) == ("shop.raw", ("a.*",), ("theirs",))
    assert other.delays == (timedelta(seconds=10),)
    assert not any((typed.ordered, typed.temporary, other.ordered, other.temporary))


@pytest.mark.parametrize("name", ["", "Shop", "1a", "a-b", "a.b", "tidegate", "events", "a" * 61])
def test_a_service_that_queues_cannot_be_named_by_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"service '{name}'"):
        Service(name)


@pytest.mark.parametrize("concurrency", [0, -1, 10_001])
def test_a_service_runs_one_delivery_at_least(concurrency: int) -> None:
    with pytest.raises(ConfigurationError, match=f"service 'shop': concurrency={concurrency}"):
        Service("shop", concurrency=concurrency)


@pytest.mark.parametrize(
    ("middleware", "told"),
    [
        (breaker(), r"middleware=.*; it is a list, such as \[breaker\(\)\]"),
        (None, "middleware=None; it is a list"),
        ([breaker], r"middleware has .* takes no handler and process; write breaker\(\), not breaker"),
        (["breaker"], "middleware has 'breaker', which takes no handler and process"),
    ],
)
def test_middleware_that_wraps_nothing_is_refused_where_it_is_given(middleware: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"service 'shop': {told}"):
        Service("shop", middleware=middleware)
    with pytest.raises(ConfigurationError, match=f"app 'shop': {told}"):
        App("shop", events="events", services="handlers", middleware=middleware)
    with pytest.raises(ConfigurationError, match=rf"Tester\(\): {told}"):
        Tester(Service("shop"), middleware=middleware)


@pytest.mark.parametrize("retry", [3, None, exponential])
def test_a_retry_that_is_no_policy_is_refused_with_its_place(retry: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"test_service\.py:\d+\): retry=.*; it is a policy"):
        Service("shop").on(Placed, retry=retry)(fine)


@pytest.mark.parametrize("name", ["a", "inventory_updates", "Theirs.v2", "a-b c", "x" * 255])
def test_a_foreign_queue_may_have_any_plain_name(name: str) -> None:
    assert Queue(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 256, "größe", "a\nb"])
def test_a_queue_has_a_name_that_amqp_takes(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a queue's name has 1 to 255"):
        Queue(name)


def test_two_of_one_name_are_told_with_both_places() -> None:
    first, second = Service("shop"), Service("shop")
    first.on(Placed)(fine)
    first.on(Placed)(fine)
    with pytest.raises(ConfigurationError) as raised:
        check([first, second])
    services, handlers = raised.value.problems
    assert services.startswith(f"two services have the name 'shop': the one of {__name__}.fine ({__file__}:")
    assert "and one without handlers, Service('shop');" in services
    assert handlers.count("test_service.py:") == 2


def test_the_same_name_in_two_services_is_no_problem() -> None:
    first, second = Service("shop"), Service("store")
    for service in (first, second):
        service.on(Placed)(fine)
    check([first, second])


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


async def each_other_session() -> AsyncIterator[Session]:
    yield Session()


async def wants_pool(event: Placed, pool: Pool) -> None: ...


async def another_pool() -> AsyncIterator[Pool]:
    yield Pool()


def test_resources_that_do_not_fit_together_are_told() -> None:
    assert "nobody provides Session" in resource_problems(pool)
    assert "in a circle: Pool, Session" in resource_problems(pool, session)
    assert "it lives as long as the worker, Session does not" in resource_problems(pool, each_session)
    told = resource_problems(each_session, another_pool, each_other_session)
    assert "two resources yield Session" in told
    assert told.count("test_service.py:") == 2


def test_every_problem_of_every_service_is_told_at_once() -> None:
    first, second = Service("shop"), Service("store")
    first.resource(pool)
    second.resource(session)
    second.on(Placed)(wants_pool)
    with pytest.raises(ConfigurationError) as raised:
        check([first, second])
    assert len(raised.value.problems) == 3


def test_resources_that_fit_together_are_no_problem() -> None:
    service = Service("shop")
    service.resource(another_pool)
    service.resource(per="delivery")(session)
    service.on(Placed)(wants_pool)
    check([service])


def test_what_a_test_provides_counts_as_declared() -> None:
    service = Service("shop")
    service.resource(pool)
    service.resource(session)
    service.on(Placed)(wants_pool)
    with pytest.raises(ConfigurationError, match="circle"):
        check([service])
    check([service], provided={Session: Session()})


async def yields_nothing_known():  # type: ignore[no-untyped-def]  # noqa: ANN201
    yield Pool()


async def yields_a_bare_iterator() -> AsyncIterator:  # type: ignore[type-arg]
    yield Pool()


async def takes_anything(other) -> AsyncIterator[Pool]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    yield Pool()


async def takes_nowhere(other: Nowhere) -> AsyncIterator[Pool]:  # type: ignore[name-defined]  # noqa: F821
    yield Pool()


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda: None, "async generator"),
        (fine, "async generator"),
        (yields, "async generator"),
        (yields_nothing_known, "annotate what it yields"),
        (yields_a_bare_iterator, "annotate what it yields"),
        (takes_anything, "'other' has no annotation"),
        (takes_nowhere, "'Nowhere' is not defined"),
    ],
)
def test_a_resource_is_an_async_generator(function: Callable[..., Any], told: str) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=told) as raised:
        service.resource(function)
    assert f"({__file__}:{function.__code__.co_firstlineno})" in str(raised.value)
    assert service.resources == []


@pytest.mark.parametrize("per", ["delivry", "process", "Worker", None])
def test_a_resource_lives_as_long_as_the_worker_or_a_delivery(per: Any) -> None:
    service = Service("shop")
    with pytest.raises(ConfigurationError, match=rf"\.pool \({__file__}:\d+\): per={per!r}; it is \"worker\" .*"):
        service.resource(per=per)(pool)
    assert service.resources == []


def test_a_handler_that_wants_what_nobody_provides_is_told_with_its_place() -> None:
    service = Service("shop")

    @service.on(Placed)
    async def work(placed: Placed, pool: Pool) -> None: ...

    with pytest.raises(ConfigurationError, match=r"test_service\.py:\d+\): nobody provides Pool for 'pool'"):
        check([service])
    check([service], provided={Pool: Pool()})
