"""Event classes of other tests of the process do not matter to a test."""

from __future__ import annotations

from typing import Any

import pytest

from bus import ConfigurationError, Event, Service
from bus.testing import Tester


class Changed(Event):
    number: int


class Paid(Changed, type="known.paid"):
    pass


def defined(base: type[Event], name: str, kind: str, module: str = __name__) -> Any:
    """Return a class as some test would define it."""
    return type(base)(name, (base,), {"__module__": module}, type=kind)


async def follow(changed: Changed) -> None: ...


def followed(*classes: type[Event]) -> Service:
    service = Service("known")
    service.on(*classes)(follow)
    return service


async def test_a_handler_of_a_base_gets_the_class_that_was_defined_last_of_those_that_are_one() -> None:
    got: list[Event] = []
    service = Service("known")

    @service.on(Changed)
    async def note(changed: Changed) -> None:
        got.append(changed)

    for number in range(2):
        again = defined(Changed, "Sold", "known.sold")
        async with Tester(service) as bus:
            await bus.publish(again(number=number))
            await bus.settled()
            assert type(got.pop()) is again


@pytest.mark.parametrize("own_is_first", [True, False])
async def test_a_handler_of_a_base_gets_the_class_that_its_module_has(
    own_is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = [__name__, "elsewhere"] if own_is_first else ["elsewhere", __name__]
    classes = {module: defined(Changed, "Left", "known.left", module) for module in modules}
    monkeypatch.setitem(globals(), "Left", classes[__name__])
    async with Tester(followed(Changed)) as bus:
        await bus.publish(classes[__name__](number=1))
        await bus.settled()
        assert [type(event) for event in bus.published(Changed)] == [classes[__name__]]
        assert len(bus.handled(follow)) == 1


async def test_a_class_that_a_handler_names_goes_before_one_that_its_base_brings() -> None:
    named, other = defined(Changed, "Moved", "known.moved"), defined(Changed, "Moved", "known.moved", "elsewhere")
    for classes in ((Changed, named), (named, Changed)):
        async with Tester(followed(*classes)) as bus:
            await bus.publish(named(number=1))
            await bus.settled()
            assert [type(event) for event in bus.published(Changed)] == [named]
    with pytest.raises(ConfigurationError, match=r"'known.moved' is used twice: by .*Moved and by elsewhere.Moved"):
        Tester(followed(named, other))


async def test_what_other_tests_define_matters_only_to_who_publishes_it() -> None:
    class Turned(Changed):
        pass

    first, last = (defined(Turned, "Back", "known.back", module) for module in ("here", "elsewhere"))
    defined(Turned, "Back", "known.back", "elsewhere")
    kept = defined(Turned, "Round", "known.round")
    async with Tester(followed(Turned)) as bus:
        await bus.publish(kept(number=1), last(number=2))
        await bus.settled()
        assert len(bus.handled(follow)) == 2
        told = r"a handler of their base would get elsewhere\.Back for here\.Back, as both have the type 'known\.back'"
        with pytest.raises(ConfigurationError, match=told):
            await bus.publish(first(number=3))


async def test_of_two_classes_of_a_type_the_one_counts_that_the_handlers_module_has() -> None:
    type(Changed)("Paid", (Changed,), {"__module__": "elsewhere"}, type="order.paid")
    async with Tester(followed(Paid)) as bus:
        await bus.publish(Paid(number=1))
        await bus.settled()
        assert bus.published(Changed) == [Paid(number=1)]


async def test_a_type_of_two_classes_is_never_taken_for_one_of_them() -> None:
    class Moved(Event):
        to: str

    def defined(name: str) -> type[Event]:
        return type(Moved)(name, (Moved,), {"__module__": __name__}, type="order.moved")

    defined("Sent")
    again = defined("Sent")
    async with Tester(Service("nobody")) as bus:
        await bus.publish(again(to="Rome"))
        (found,) = bus.published(Moved)
        assert type(found) is again, "of what was defined again, the last"
        defined("Shifted")
        with pytest.raises(ConfigurationError, match=r"'order.moved', .* has several classes: .*Sent and .*Shifted"):
            bus.published(Moved)
        assert bus.published(again) == [again(to="Rome")]
