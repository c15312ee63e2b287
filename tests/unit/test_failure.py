"""What an exception becomes: the record, and the judgement."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bus import (
    DeadLetter,
    Event,
    Handler,
    Message,
    Outcome,
    Policy,
    Retry,
    Service,
    SqliteStore,
    SqliteTransaction,
    clock,
    fixed,
)
from bus.errors import RetryAfter
from bus.failure import LONGEST_ERROR, LONGEST_TRACEBACK, dead, failure, judge, place_in, text_of, traceback_of
from bus.testing import Tester


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Placed(Event, type="order.placed"):
    pass


MESSAGE = Message(id="one", type="order.placed", version=1, source="/", time=NOW, body=b"")


@dataclass
class Played:
    attempt: int = 1
    first_failed_at: datetime | None = None
    redelivered: int = 0
    message: Message = MESSAGE

    async def settle(self, outcome: Outcome) -> None:
        raise AssertionError("a judgement settles nothing")


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


def handler(retry: Policy | None = None) -> Handler:
    service = Service("shop")

    @service.on(Placed, name="work", retry=retry or fixed(3, 7))
    async def work(placed: Placed) -> None: ...

    return service.handlers[0]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_retry_says_what_happened_without_a_traceback() -> None:
    error = raised(ValueError("bad"))
    outcome = judge(handler(), Played(attempt=2), error, Random(0))
    assert isinstance(outcome, Retry)
    assert (outcome.delay, outcome.attempt) == (timedelta(seconds=7), 3)
    record = outcome.failure
    assert (record.service, record.handler, record.reason, record.attempts) == ("shop", "work", "failed", 2)
    assert (record.error_type, record.error, record.traceback) == ("ValueError", "bad", "")
    assert record.exception is error


def test_a_dead_letter_says_all_that_is_known() -> None:
    outcome = judge(handler(), Played(attempt=3), raised(ValueError("bad")), Random(0))
    assert isinstance(outcome, DeadLetter)
    record = outcome.failure
    assert (record.reason, record.attempts) == ("exhausted", 3)
    assert record.traceback.startswith("Traceback")
    assert record.traceback.endswith("ValueError: bad\n")
    assert __file__ in record.traceback
    assert record.worker.endswith(f":{os.getpid()}")
    assert len(record.worker) > len(f":{os.getpid()}")


@pytest.mark.parametrize("earlier", [None, NOW - timedelta(hours=3)])
def test_the_first_failure_is_remembered(earlier: datetime | None) -> None:
    record = failure(handler(), Played(first_failed_at=earlier), "failed", ValueError())
    assert (record.first_failed_at, record.last_failed_at) == (earlier or NOW, NOW)


@pytest.mark.parametrize(("attempt", "runs", "attempts"), [(1, 1, 1), (1, 0, 0), (4, 1, 4), (4, 0, 3)])
def test_attempts_are_the_runs_that_there_were(attempt: int, runs: int, attempts: int) -> None:
    assert dead(handler(), Played(attempt=attempt), "expired", ValueError(), runs).failure.attempts == attempts


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Quitter(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Text(str):
    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __len__(self) -> int:
        raise RuntimeError


class Wordy(Exception):
    def __str__(self) -> str:
        return Text("of another kind")


class Liar(Exception):
    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt


class Endless(RetryAfter):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Liar, Endless, Quitter])
def test_an_exception_that_cannot_be_asked_is_retried_like_any_other(kind: type[Exception]) -> None:
    outcome = judge(handler(), Played(), kind(), Random(0))
    assert isinstance(outcome, Retry)
    assert (outcome.delay, outcome.failure.error_type) == (timedelta(seconds=7), kind.__name__)


def test_the_text_of_an_exception_that_ends_programs_or_is_no_plain_text() -> None:
    assert text_of(Quitter()) == "(its text cannot be had: str() raised KeyboardInterrupt)"
    assert text_of(Wordy()) == "of another kind"
    assert type(text_of(Wordy())) is str


def test_the_name_of_a_class_is_capped_and_can_be_written() -> None:
    odd = type("Odd", (Exception,), {})
    odd.__qualname__ = "Na\ud800me" + "x" * 10_000
    name = failure(handler(), Played(), "failed", odd()).error_type
    assert name.startswith(r"Na\ud800me")
    assert len(name.encode()) <= 200


class Odd(Exception):
    def __str__(self) -> Any:
        return 7  # noqa: PLE0307


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad"), "bad"),
        (ValueError(), ""),
        (KeyError("a"), "'a'"),
        (Mute(), "(its text cannot be had: str() raised RuntimeError)"),
        (Odd(), "(its text cannot be had: str() raised TypeError)"),
        (OSError("no \udcff here"), r"no \udcff here"),
        (ValueError("😀" * LONGEST_ERROR), "😀" * (LONGEST_ERROR // 4) + " …"),
        (ValueError("\ud800" * LONGEST_ERROR), r"\ud800" * (LONGEST_ERROR // 6) + r"\u …"),
        (ValueError("x" * LONGEST_ERROR), "x" * LONGEST_ERROR),
        (ValueError("x" * (LONGEST_ERROR + 1)), "x" * LONGEST_ERROR + " …"),
    ],
    ids=[
        *("text", "empty", "key", "mute", "odd", "surrogate", "wide", "surrogates"),
        *("longest", "longer"),
    ],
)
def test_the_text_of_an_error(error: Exception, text: str) -> None:
    assert text_of(error) == text


def test_a_traceback_is_capped_to_its_end_where_the_cause_is() -> None:
    text = traceback_of(raised(ValueError("x" * LONGEST_TRACEBACK + "the end")))
    assert text.startswith("… xxx")
    assert text.endswith("the end\n")
    assert len(text) == LONGEST_TRACEBACK + 2


@pytest.mark.parametrize("error", [Mute(), ValueError("no \udcff here")])
def test_a_traceback_can_always_be_written(error: Exception) -> None:
    assert type(error).__name__ in traceback_of(raised(error)).encode().decode()


def test_a_traceback_that_cannot_be_formatted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("traceback.format_exception", broken)
    assert "formatting raised RecursionError" in traceback_of(ValueError())


CALLED = """Traceback (most recent call last):
  File "/app/bus/delivery.py", line 112, in run
    returned = context.publish(*_events(await call(given, context, delivery)))
  File "/app/bus/deadline.py", line 30, in run
"""
REFUND = """  File "/app/handlers/billing.py", line 31, in refund
    await transaction.execute("INSERT INTO refunds VALUES (?)", [order.id])
"""
IN_THE_STORE = """  File "/app/bus/store/sqlite.py", line 319, in work
    return connection.execute(sql, parameters).fetchall()
"""
INSTALLED = "/app/.venv/lib/python3.13/site-packages"
IN_A_DRIVER = f"""  File "{INSTALLED}/sqlalchemy/engine/base.py", line 9, in execute
  File "/usr/local/lib/python3.13/asyncio/tasks.py", line 7, in sleep
  File "<frozen runpy>", line 198, in _run_module_as_main
"""
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("traceback", "place"),
    [
        (CALLED + REFUND + IN_THE_STORE, "billing.py:31 in refund"),
        (CALLED + REFUND + IN_A_DRIVER, "billing.py:31 in refund"),
        (
            CALLED.replace("/app", INSTALLED) + REFUND + IN_THE_STORE.replace("/app", INSTALLED),
            "billing.py:31 in refund",
        ),
        (REFUND + IN_A_DRIVER + CAUSE + CALLED, "billing.py:31 in refund"),
        (CALLED + REFUND.replace("/app", INSTALLED) + IN_THE_STORE, "billing.py:31 in refund"),
        (CALLED + IN_THE_STORE, "sqlite.py:319 in work"),
        (IN_A_DRIVER + CAUSE + CALLED, "deadline.py:30 in run"),
        (REFUND.replace("handlers", "bus"), "billing.py:31 in refund"),
        ("", ""),
    ],
    ids=["store", "driver", "wheel", "timeout", "own wheel", "ours", "cause", "namesake", "never ran"],
)
def test_a_failures_place_is_the_innermost_line_of_the_users_code(traceback: str, place: str) -> None:
    assert place_in(traceback) == place


async def test_what_two_statements_of_a_handler_raise_has_two_places() -> None:
    service = Service("shop", store=SqliteStore(":memory:"))

    @service.on(Placed, idempotent=True, retry=fixed(1, 0))
    async def work(placed: Placed, message: Message, transaction: SqliteTransaction) -> None:
        if message.id == "one":
            await transaction.execute("SELECT * FROM nowhere")
        await transaction.execute("SELECT * FROM nowhere")

    async with Tester(service) as bus:
        for id in ("one", "two"):
            await bus.publish(Placed(), id=id)
        await bus.settled()
        places = {place_in(letter.failure.traceback).partition(":")[0::2] for letter in bus.dead_letters()}
    first = work.__code__.co_firstlineno + 3
    assert places == {(Path(__file__).name, f"{line} in work") for line in (first, first + 1)}
