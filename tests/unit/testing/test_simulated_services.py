"""Services of every kind keep the contract whatever happens; a few seeds of each here."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bus import Bus, BusUnavailable, Context, Event, Message, RequestTimeout, Service, Settings, fixed
from bus.middleware.breaker import breaker
from bus.testing import Tester, simulate


class Moved(Event, type="stock.moved"):
    shelf: str = "a"
    number: int


class Booked(Event, type="stock.booked"):
    number: int


class Ledger:
    """What the handlers did, in their order."""

    def __init__(self) -> None:
        self.booked: dict[str, list[int]] = defaultdict(list)
        self.runs: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.published: dict[int, set[str]] = defaultdict(set)
        self.most = 0
        self.mended = False

    def book(self, where: str, number: int) -> None:
        """Note a first success; what comes again is known already."""
        if number not in self.booked[where]:
            self.booked[where].append(number)


class Busy(Counter[str]):
    """How much runs in one worker; each has its own."""


def now() -> float:
    return asyncio.get_running_loop().time()


def ordered() -> Tester:
    service = Service("ledger", concurrency=3)

    @service.on(Moved, ordered_by="shelf", ordered_window=4, retry=fixed(4, 2))
    async def book(moved: Moved, context: Context, ledger: Ledger) -> Booked:
        await asyncio.sleep(0.01 * (moved.number % 3))
        if moved.number % 3 == 1 and context.attempt < 3:
            raise ConnectionError("not yet")
        ledger.book(moved.shelf, moved.number)
        return Booked(number=moved.number)

    @service.on(Booked)
    async def hear(booked: Booked, message: Message, ledger: Ledger) -> None:
        ledger.published[booked.number].add(message.id)

    return Tester(service, resources={Ledger: Ledger()})


async def first_successes_of_a_key_come_in_order(bus: Tester) -> None:
    for number in range(10):
        await bus.publish(Moved(shelf="ab"[number % 2], number=number))
    await bus.settled(within=60)
    ledger = bus.resources[Ledger]
    assert bus.dead_letters() == []
    assert ledger.booked == {"a": [0, 2, 4, 6, 8], "b": [1, 3, 5, 7, 9]}
    assert [len(ids) for ids in ledger.published.values()] == [1] * 10


def broken_for_a_while() -> Tester:
    service = Service("mailer", concurrency=2, middleware=[breaker(failures=3, cool_down=30)])

    @service.resource
    async def busy() -> AsyncIterator[Busy]:
        yield Busy()

    @service.on(Moved, retry=fixed(60, 5), timeout=20)
    async def mail(moved: Moved, ledger: Ledger, busy: Busy) -> None:
        busy["mail"] += 1
        ledger.most = max(ledger.most, busy.total())
        try:
            await asyncio.sleep(0.1)
            if now() < 100:
                raise ConnectionError("the mail server is down")
            ledger.book("mail", moved.number)
        finally:
            busy["mail"] -= 1

    @service.on(Moved)
    async def file(moved: Moved, ledger: Ledger) -> None:
        ledger.book("file", moved.number)

    return Tester(service, resources={Ledger: Ledger()})


async def a_breakers_backlog_stays_and_goes_on(bus: Tester) -> None:
    await bus.publish(*(Moved(number=number) for number in range(6)))
    await bus.settled(within=60)
    ledger = bus.resources[Ledger]
    assert bus.dead_letters() == []
    assert sorted(ledger.booked["mail"]) == sorted(ledger.booked["file"]) == [*range(6)]
    assert ledger.most <= 2


def failing() -> Tester:
    service = Service("retries")

    @service.on(Moved, retry=fixed(3, 2), timeout=20)
    async def work(moved: Moved, message: Message, context: Context, ledger: Ledger) -> Booked:
        ledger.runs[message.id].append((context.attempt, now()))
        if not ledger.mended and (moved.number == 0 or context.attempt == 1):
            raise ValueError("not now")
        return Booked(number=moved.number)

    @service.on(Moved)
    async def beside(moved: Moved, context: Context, ledger: Ledger) -> None:
        ledger.runs["beside"].append((context.attempt, now()))

    @service.on(Booked)
    async def hear(booked: Booked, message: Message, ledger: Ledger) -> None:
        ledger.published[booked.number].add(message.id)

    return Tester(service, resources={Ledger: Ledger()})


async def attempts_count_on_and_a_replay_reaches_its_handler_only(bus: Tester) -> None:
    await bus.publish(*(Moved(number=number) for number in range(3)))
    await bus.settled(within=60)
    ledger, letters = bus.resources[Ledger], bus.dead_letters()
    assert {letter.message.body for letter in letters} == {b'{"shelf":"a","number":0}'}
    assert {(letter.failure.reason, letter.failure.attempts) for letter in letters} == {("exhausted", 3)}
    beside = ledger.runs.pop("beside")
    assert {attempt for attempt, _ in beside} == {1}
    for runs in ledger.runs.values():
        began: dict[int, float] = {}
        for attempt, at in runs:
            assert attempt == 1 or began[attempt - 1] + 2 <= at + 0.001, "never early, and none left out"
            began.setdefault(attempt, at)
    ledger.runs.clear()
    ledger.mended = True
    for letter in letters:
        await bus.transport.dead_letters.replay(letter)
    await bus.settled(within=60)
    assert bus.dead_letters() == []
    assert [{attempt for attempt, _ in runs} for runs in ledger.runs.values()] == [{1}]
    assert {number: len(ids) for number, ids in ledger.published.items()} == {0: 1, 1: 1, 2: 1}


def asking() -> Tester:
    front, back = Service("front"), Service("back")

    @front.resource
    async def bus() -> AsyncIterator[Bus]:
        yield None  # type: ignore[misc]

    @front.on(Moved, retry=fixed(20, 1), timeout=200)
    async def ask(moved: Moved, bus: Bus, ledger: Ledger) -> None:
        booked = await bus.request(Booked(number=moved.number), Answered, timeout=30)
        ledger.book("front", booked.number)

    @back.on(Booked, retry=fixed(3, 1), timeout=20)
    async def answer(booked: Booked) -> Answered:
        return Answered(number=booked.number)

    return Tester(front, back, resources={Ledger: Ledger()})


class Answered(Event, type="stock.answered"):
    number: int


async def every_request_is_answered_or_raises(bus: Tester) -> None:
    await bus.publish(*(Moved(number=number) for number in range(3)))
    for number in range(3, 6):
        while bus.resources[Ledger].booked["scenario"][-1:] != [number]:
            try:
                answer = await bus.request(Booked(number=number), Answered, timeout=60)
                bus.resources[Ledger].book("scenario", answer.number)
            except (BusUnavailable, RequestTimeout):
                pass
    await bus.settled(within=60)
    assert bus.dead_letters() == []
    assert sorted(bus.resources[Ledger].booked["front"]) == [0, 1, 2]


def suspected() -> Tester:
    service = Service("crashing", concurrency=2)

    @service.on(Moved, rate="20/s", timeout=200)
    async def work(moved: Moved, ledger: Ledger) -> None:
        await asyncio.sleep(0.5)
        ledger.book("work", moved.number)

    @service.on(Moved, ordered_by="shelf", timeout=200)
    async def in_order(moved: Moved, ledger: Ledger) -> None:
        await asyncio.sleep(0.5)
        ledger.book("in_order", moved.number)

    return Tester(service, resources={Ledger: Ledger()}, settings=Settings(crash_limit=2))


async def only_what_crashed_twice_while_it_ran_is_given_up(bus: Tester) -> None:
    await bus.publish(*(Moved(number=number) for number in range(4)))
    await bus.settled(within=60)
    letters, crashes = bus.dead_letters(), bus.story().count("the worker crashes")
    # those before made it a suspect
    assert not letters or crashes >= 2 + 2
    assert {letter.failure.reason for letter in letters} <= {"crash"}
    ledger = bus.resources[Ledger]
    for name in ("work", "in_order"):
        given_up = [letter.message.body for letter in letters if letter.handler == name]
        assert len(ledger.booked[name]) + len(given_up) >= 4
    assert ledger.booked["in_order"] == sorted(ledger.booked["in_order"])


SCENARIOS: list[tuple[Callable[[], Tester], Callable[[Tester], Awaitable[None]]]] = [
    (ordered, first_successes_of_a_key_come_in_order),
    (broken_for_a_while, a_breakers_backlog_stays_and_goes_on),
    (failing, attempts_count_on_and_a_replay_reaches_its_handler_only),
    (asking, every_request_is_answered_or_raises),
    (suspected, only_what_crashed_twice_while_it_ran_is_given_up),
]


@pytest.mark.parametrize(("build", "scenario"), SCENARIOS, ids=lambda function: function.__name__)
def test_the_contract_holds_whatever_happens(
    build: Callable[[], Tester], scenario: Callable[[Tester], Awaitable[None]]
) -> None:
    simulate(build, scenario, seeds=range(40))
