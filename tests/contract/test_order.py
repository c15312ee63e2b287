"""D5: equal keys run one at a time and in order, in one worker at a time, through retries, stops and kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter, defaultdict

import orjson
import pytest

from bus import Context, Handler, Message, Process, Reject, RetryAfter, Service, fixed
from bus.transport import Subscription
from tests.broker.fixtures import Shared
from tests.broker.proxy import Proxy

from .orderly import Moved, prove
from .poisoned import CRASHES, EXITS, Done, services
from .stage import Log, Placed, Stage, staged, told
from .test_poison import poisoned


SIZE = [int(number) for number in os.environ.get("TIDEGATE_ORDER", "60 8 4 4").split()]
"""Events of each key, stops, kills and closes of the proof; at full size 1000 100 20 20."""


def moves(keys: str, each: int, start: int = 0) -> list[Moved]:
    """Return so many events of each key, the keys in turns."""
    return [Moved(parcel=key, number=number) for number in range(start, start + each) for key in keys]


def by_key(seen: list[tuple[str, int]]) -> dict[str, list[int]]:
    """Return the numbers of each key in the order in which they were seen."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for key, number in seen:
        numbers[key].append(number)
    return dict(numbers)


async def test_d5_equal_keys_run_one_at_a_time_and_in_order_beside_other_keys(stage: Stage) -> None:
    done: Log[tuple[str, int]] = Log()
    running: Counter[str] = Counter()
    most_of_one, most_at_once = 0, 0
    service = Service("yard", concurrency=4)

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        nonlocal most_of_one, most_at_once
        running[moved.parcel] += 1
        most_of_one = max(most_of_one, running[moved.parcel])
        most_at_once = max(most_at_once, running.total())
        await asyncio.sleep(0.002 * (moved.number % 3))
        running[moved.parcel] -= 1
        done.append((moved.parcel, moved.number))

    await stage.declare(service)
    await stage.bus.publish(*(move for key in "abcdefgh" for move in moves(key, 20)))
    async with stage.hosting(service):
        await done.reaches(160)
    assert by_key(done) == {key: list(range(20)) for key in "abcdefgh"}
    assert (most_of_one, most_at_once) == (1, 4)


async def test_d5_a_failing_key_waits_in_place_and_holds_back_itself_only(stage: Stage) -> None:
    done: Log[tuple[str, int]] = Log()
    attempts: Log[int] = Log()
    go = asyncio.Event()
    service = Service("yard", concurrency=2)

    @service.on(Moved, ordered_by="parcel", retry=fixed(1_000, 0.1))
    async def work(moved: Moved, context: Context) -> None:
        if (moved.parcel, moved.number) == ("a", 0):
            attempts.append(context.attempt)
            if not go.is_set():
                raise ConnectionError("not yet")
        done.append((moved.parcel, moved.number))

    async with stage.hosting(service):
        await stage.bus.publish(*moves("abc", 10))
        await done.reaches(20)
        await attempts.reaches(3)
        assert set(by_key(done)) == {"b", "c"}
        go.set()
        await done.reaches(30)
        assert await stage.letters("yard", 0) == []
    assert by_key(done) == {key: list(range(10)) for key in "abc"}
    assert attempts == list(range(1, len(attempts) + 1))


class Kept:
    """A middleware that does nothing but keep the handlers as their workers have them."""

    def __init__(self) -> None:
        self.handlers: list[Handler] = []

    def __call__(self, handler: Handler, process: Process) -> Process:
        self.handlers.append(handler)
        return process


async def test_d5_retries_in_place_carry_the_original_and_count_on(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    seen: Log[tuple[str, int, int, bytes, bool]] = Log()
    service = Service("yard")

    @service.on("parcel.moved", ordered_by="type", retry=fixed(3, 0.05))
    async def work(message: Message, context: Context) -> None:
        number = orjson.loads(message.body)["number"]
        seen.append((message.headers["mine"], number, context.attempt, message.body, context.first_failed_at is None))
        if number == 0:
            raise RetryAfter(0.3) if context.attempt == 1 else ValueError("no")

    async with stage.hosting(service):
        await stage.bus.publish(*moves("a", 2), headers={"mine": "yes"})
        await seen.reaches(4)
        (letter,) = await stage.letters("yard")
    assert [(number, attempt) for _, number, attempt, _, _ in seen] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert len({(header, body) for header, _, _, body, _ in seen[:3]}) == 1
    assert [first for *_, first in seen] == [True, False, False, True]
    assert (letter.failure.reason, letter.failure.attempts, letter.message.body) == ("exhausted", 3, seen[0][3])
    assert [text for record in caplog.records if "event=retry" in (text := record.getMessage()) and "attempt=1" in text]


async def test_d5_a_full_window_pauses_and_says_so(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tidegate")
    done: Log[tuple[str, int]] = Log()
    failed: Log[int] = Log()
    go = asyncio.Event()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", ordered_window=5, retry=fixed(1_000, 0.1))
    async def work(moved: Moved) -> None:
        if moved.parcel == "a" and not go.is_set():
            failed.append(moved.number)
            raise ConnectionError
        done.append((moved.parcel, moved.number))

    async with stage.hosting(service):
        await stage.bus.publish(*moves("a", 8), *moves("b", 3))
        await failed.reaches(4)
        (pauses,) = await told(caplog, "handler pauses")
        assert done == []
        assert "handler=yard.work" in pauses
        assert "oldest_key=a" in pauses
        go.set()
        await done.reaches(11)
        assert await told(caplog, "handler goes on")
    assert by_key(done) == {"a": list(range(8)), "b": list(range(3))}


async def test_d5_a_stop_keeps_the_order(stage: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        log.append(("begins", moved.number))
        await asyncio.sleep(0.05)
        log.append(("ends", moved.number))

    async with stage.hosting(service) as first, stage.hosting(service) as second, stage.hosting(service) as third:
        await stage.bus.publish(*moves("a", 30))
        for number, hosted in enumerate((first, second, third)):
            await log.reaches(10 * number + 5)
            await hosted.stop()
    async with stage.hosting(service):
        await log.reaches(60)
    # one at a time over all replicas, each once: nobody began while another one still ran
    assert log == [(what, number) for number in range(30) for what in ("begins", "ends")]


async def test_d5_what_outlasts_the_grace_comes_first_to_the_next(stage: Stage) -> None:
    begun: Log[int] = Log()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        begun.append(moved.number)
        if len(begun) == 1:
            await asyncio.Event().wait()

    async with stage.hosting(service, grace=0.1) as hosted, stage.hosting(service):
        await stage.bus.publish(*moves("a", 10))
        await begun.reaches(1)
        await hosted.stop()
        await begun.reaches(11)
    assert begun == [0, *range(10)]


async def test_d5_what_a_dead_worker_held_comes_first_to_the_standby(stage: Stage) -> None:
    begun: Log[tuple[str, int]] = Log()
    go = asyncio.Event()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        begun.append((moved.parcel, moved.number))
        if moved.parcel == "a" and not go.is_set():
            await asyncio.Event().wait()

    async with stage.hosting(service) as active, stage.hosting(service):
        await stage.bus.publish(*moves("ab", 20))
        await begun.reaches(21)
        go.set()
        await active.die()
        await begun.reaches(41)
    assert by_key(begun) == {"a": [0, *range(20)], "b": list(range(20))}


async def test_d5_a_pause_hands_over_to_another_replica_when_nothing_runs_here(stage: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    kept = Kept()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel")
    async def work(moved: Moved) -> None:
        log.append(("begins", moved.number))
        await asyncio.sleep(0.02)
        log.append(("ends", moved.number))

    async with stage.hosting(service, middleware=[kept]), stage.hosting(service, middleware=[kept]):
        await stage.bus.publish(*moves("a", 40))
        first, second = (handler.flow for handler in kept.handlers)
        for number in range(4):
            await log.reaches(12 * number + 5)
            paused, other = (first, second) if number % 2 == 0 else (second, first)
            paused.hold("operator")
            await log.reaches(12 * number + 11)
            paused.release("operator")
            other.hold("breaker", number % 2)  # nothing, or one at a time
            other.release("breaker")
        await log.reaches(80)
    assert log == [(what, number) for number in range(40) for what in ("begins", "ends")]


async def test_d5_replays_and_delayed_events_join_at_the_tail(stage: Stage) -> None:
    done: Log[int] = Log()
    go = asyncio.Event()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(200, 0.05))
    async def work(moved: Moved) -> None:
        if moved.number == 0 and not done:
            done.append(-1)
            raise Reject("at first")
        if not go.is_set():
            raise ConnectionError
        done.append(moved.number)

    async with stage.hosting(service):
        await stage.bus.publish(*moves("a", 4))
        await stage.bus.publish(Moved(parcel="a", number=9), delay=0.1)
        (letter,) = await stage.letters("yard")
        await stage.transport.dead_letters.replay(letter)
        await stage.bus.publish(Moved(parcel="a", number=4))
        go.set()
        await done.reaches(7)
    assert done[:4] == [-1, 1, 2, 3]
    assert [number for number in done[4:] if number != 9] == [0, 4]


async def test_d5_a_run_that_lost_its_connection_ends_once_and_its_key_waits_for_it(
    broker: Shared, vhost_name: str, proxy: Proxy
) -> None:
    log: Log[tuple[str, int]] = Log()
    go = asyncio.Event()
    service = Service("yard")

    @service.on(Moved, ordered_by="parcel", retry=fixed(20, 0.2))
    async def work(moved: Moved, context: Context) -> None:
        log.append(("begins", moved.number))
        if moved.number == 0:
            await go.wait()
        if moved.number == 1 and context.attempt < 4:
            raise ConnectionError
        log.append(("ends", moved.number))

    async with staged("rabbitmq", proxy.url(vhost_name)) as stage, stage.hosting(service):
        await stage.bus.publish(*moves("ab", 4), Moved(parcel="c", number=99))
        await log.holds(lambda seen: ("ends", 99) in seen, "the key that has nothing to do with it")
        for _ in range(3):
            links = proxy.connections
            proxy.drop()
            await stage.bus.publish(Moved(parcel="d", number=100))
            await log.holds(lambda seen: ("ends", 100) in seen, "a delivery on the new connection")
            log.remove(("ends", 100))
            assert proxy.connections > links
        assert ("begins", 1) not in log
        go.set()
        await log.holds(lambda seen: seen.count(("ends", 3)) == 2, "both keys")
    a_and_b = [entry for entry in log if entry[1] < 50]
    assert [number for what, number in a_and_b if what == "begins"].count(0) == 2  # once for each key
    assert [n for what, n in a_and_b if what == "begins"].count(1) == 8


async def test_d5_two_that_kill_their_worker_are_dead_lettered_and_the_order_is_kept(rabbitmq: Stage) -> None:
    log: Log[tuple[str, int]] = Log()
    collector = Service("collector")

    @collector.on(Done, ordered_by="service")
    async def collect(done: Done) -> None:
        log.append((done.service, done.number))

    await rabbitmq.declare(*services(ordered=True), collector)
    await rabbitmq.bus.publish(*(Placed(number=number, note=str(number % 4)) for number in range(100)))
    process = await poisoned(rabbitmq, "ordered")
    async with rabbitmq.hosting(collector):
        letters = await rabbitmq.letters("sick", 2, within=90)
        await log.holds(lambda seen: len(set(seen)) == 98, "everything that does not kill")
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert len(await rabbitmq.letters("sick", 2)) == 2
    assert {letter.failure.reason for letter in letters} == {"crash"}
    first = list(dict.fromkeys(number for _, number in log))
    for key in range(4):
        expected = [number for number in range(100) if number % 4 == key and number not in (EXITS, CRASHES)]
        assert [number for number in first if number % 4 == key] == expected


async def test_d5_of_what_comes_back_the_first_is_suspected_long_before_the_others(stage: Stage) -> None:
    subscription = Subscription(service="yard", handler="work", patterns=("parcel.moved",), ordered=True)
    await stage.transport.declare([subscription])
    await stage.bus.publish(*moves("a", 3))
    suspected: list[list[bool]] = []
    for _ in range(12):
        async with stage.transport.consume(subscription, limit=3) as consumer, asyncio.timeout(10):
            suspected.append([(await anext(consumer)).suspect for _ in range(3)])
    assert suspected == [[False] * 3] * 2 + [[True, False, False]] * 8 + [[True] * 3] * 2


async def test_d5_a_handler_that_becomes_ordered_is_told_what_to_do(
    rabbitmq: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = Service("yard"), Service("yard")
    for service, key in ((before, None), (after, "parcel")):

        @service.on(Moved, ordered_by=key, name="work")
        async def work(moved: Moved) -> None: ...

    await rabbitmq.declare(before)
    async with rabbitmq.hosting(after) as hosted, asyncio.timeout(10):
        await asyncio.wait([hosted.task])
    (told,) = [text for record in caplog.records if "handler stopped" in (text := record.getMessage())]
    for part in (
        "yard.work",
        "x-single-active-consumer",
        "has ordered_by= and the queue was made without",
        "migrate yard.work",
    ):
        assert part in told


async def test_d5_first_successes_are_in_order_through_stops_kills_and_lost_connections(
    rabbitmq: Stage, broker: Shared
) -> None:
    proof = await prove(rabbitmq, broker.port, *SIZE)
    assert (proof.out_of_order, proof.missing) == ([], [])
    assert proof.runs["fail"] > 0
    assert await rabbitmq.letters("yard", 0) == []
