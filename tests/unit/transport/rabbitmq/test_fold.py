"""The fold of a stream of dead letters: claims and their end, marks in whatever order, forged ones."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus import Failure, Message
from bus.message import ROUTING_KEY
from bus.transport.rabbitmq import copies, envelope, records, wire
from bus.transport.rabbitmq.channel import Received
from bus.transport.rabbitmq.fold import CLAIM, DISCARDED, RELEASED, REPLAYED, SEALED, TURN, Fold, Noted
from bus.transport.rabbitmq.fold import KEY as LETTER_KEY
from bus.transport.rabbitmq.fold import MARK as LETTER_MARK
from bus.transport.rabbitmq.records import Entry


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
QUEUE = "shop.reserve"


def entry(
    offset: int, headers: dict[str, Any], body: bytes = b"", *, generation: int = 0, direct: bool = False
) -> Entry:
    flags, properties = copies.encode({"headers": headers})
    received: Any = Received(None, b"", bytes(12) + flags.to_bytes(2, "big") + properties, body)  # type: ignore[arg-type]
    key = "shop.dead" if direct else QUEUE
    return Entry(generation, offset, wire.properties(received.header)["headers"], received, key, direct)


def letter(offset: int, id: str = "m", failed: int = 0, **more: Any) -> Entry:
    at = NOON + timedelta(seconds=failed)
    message = Message(id=id, type="order.placed", version=1, source="/shop", time=NOON, body=b"{}")
    failure = Failure(
        service="shop",
        handler="reserve",
        reason="exhausted",
        error_type="ValueError",
        error="no",
        traceback="",
        attempts=1,
        first_failed_at=at,
        last_failed_at=at,
        worker="host:1",
    )
    raw = bytes(12) + envelope.FLAGS.to_bytes(2, "big") + envelope.encode(message)
    flags, properties, body = copies.dead_letter(raw, b"{}", message, "order.placed", failure)
    headers = wire.properties(bytes(12) + flags.to_bytes(2, "big") + properties)["headers"]
    return entry(offset, headers | more.pop("added", {}), body, **more)


def fold(*entries: Entry) -> Fold:
    folded = Fold("shop", "")
    for each in entries:
        folded.add(each)
    return folded


def mark(offset: int, kind: str, token: str, at: int = 0, turn: int = 0, generation: int = 0) -> Entry:
    (row,) = fold(letter(0)).rows.values()
    noted = Noted(kind, row.id, row.key, row.place, turn, f"operator {token}", NOON + timedelta(seconds=at), token)
    return entry(offset, noted.headers(), generation=generation, direct=True)


def holder(folded: Fold) -> str | None:
    return next((claim.token for claim in folded.claims.values()), None)


def is_open(folded: Fold) -> list[str]:
    return [row.id for row in folded.rows.values() if folded.is_open(row)]


def test_the_first_claim_has_the_letter() -> None:
    assert holder(fold(letter(0), mark(1, CLAIM, "a"), mark(2, CLAIM, "b", at=1))) == "a"


@pytest.mark.parametrize(("after", "expected"), [(299, "a"), (300, "a"), (301, "b")])
def test_the_claim_of_an_operator_who_died_ends_after_five_minutes(after: int, expected: str) -> None:
    assert holder(fold(letter(0), mark(1, CLAIM, "a"), mark(2, CLAIM, "b", at=after))) == expected


def test_a_claim_that_came_to_nothing_is_told() -> None:
    folded = fold(letter(0), mark(1, CLAIM, "a"), mark(2, CLAIM, "b", at=301), mark(3, REPLAYED, "b", at=302))
    (row,) = folded.rows.values()
    assert [(told.kind, told.operator) for told in folded.history(row)] == [
        ("failed", "host:1"),
        ("claimed", "operator a"),
        ("replayed", "operator b"),
    ]


def test_only_who_has_the_letter_lets_it_go() -> None:
    assert holder(fold(letter(0), mark(1, CLAIM, "a"), mark(2, RELEASED, "b"))) == "a"
    assert holder(fold(letter(0), mark(1, CLAIM, "a"), mark(2, RELEASED, "a"))) is None


def test_a_claim_after_the_seal_is_none() -> None:
    seal = entry(1, {LETTER_MARK: SEALED}, direct=True)
    assert holder(fold(letter(0), seal, mark(2, CLAIM, "a"))) is None
    assert holder(fold(letter(0), seal, mark(0, CLAIM, "a", generation=1))) == "a"


def test_letters_and_their_marks_come_to_the_same_in_any_order() -> None:
    entries = (
        letter(0),
        mark(1, DISCARDED, "a"),
        letter(0, generation=1, direct=True, added={TURN: 1}),
        mark(1, REPLAYED, "b", turn=1, generation=1),
        letter(2, generation=1, failed=9),
    )
    for order in itertools.permutations(range(len(entries))):
        folded = Fold("shop", "")
        for number, index in enumerate(order):
            each = entries[index]
            folded.add(Entry(0, number, each.headers, each.received, each.key, each.direct))
        opened = [row for row in folded.rows.values() if folded.is_open(row)]
        assert [row.failed_at for row in opened] == [NOON + timedelta(seconds=9)]
        assert folded.failed_again(opened[0]) == 1


def test_a_copy_that_came_twice_is_one_letter_and_keeps_the_name_of_the_first() -> None:
    assert is_open(fold(letter(3), letter(4), letter(0, generation=1))) == ["0-3"]


def test_another_failure_of_the_same_message_is_another_letter() -> None:
    assert is_open(fold(letter(0), letter(1, failed=1), letter(2, id="other"))) == ["0-0", "0-1", "0-2"]


@pytest.mark.parametrize(
    "forged",
    [
        {LETTER_MARK: "discarded", LETTER_KEY: "zz"},
        {LETTER_MARK: 7},
        {LETTER_KEY: "00" * 12},
        {TURN: -1},
        {TURN: "many"},
    ],
)
def test_what_a_message_carries_is_no_mark(forged: dict[str, Any]) -> None:
    plain = fold(letter(0))
    folded = fold(letter(0, added=forged))
    assert is_open(folded) == ["0-0"]
    assert folded.rows.keys() == plain.rows.keys()


@pytest.mark.parametrize("wrong", [{LETTER_MARK: "no such mark"}, {LETTER_MARK: "claim"}, {LETTER_MARK: "replayed"}])
def test_a_mark_that_says_nothing_changes_nothing(wrong: dict[str, Any]) -> None:
    assert is_open(fold(letter(0), entry(1, wrong, direct=True))) == ["0-0"]


@pytest.mark.parametrize(
    "added",
    [
        {},
        {"ce-id": "other"},
        {"cloudEvents:id": "other"},
        {copies.RECORD + "last-failed-at": "never"},
        {copies.RECORD + "last-failed-at": "2026-11-24T12:00:00"},
        {copies.RECORD + "reason": "broker", copies.REPLAY: "t"},
        {copies.RECORD + "handler": ""},
        {"cloudEvents_id": 7},
        {records.FIRST_DEATH: QUEUE, "x-first-death-reason": "delivery_limit"},
    ],
)
def test_a_letter_is_known_by_the_same_whichever_way_it_is_read(added: dict[str, Any]) -> None:
    read = letter(0, added=added)
    message, failure = records.read(read, "shop", "")
    known = records.known(read, "shop", "")
    assert (known.key, known.place) == records.identity(message, failure, read.headers)
    assert (known.failed_at, known.worker) == (failure.last_failed_at, failure.worker)


def test_a_forged_record_is_not_believed_where_the_broker_gave_up() -> None:
    forged = letter(0, added={records.FIRST_DEATH: QUEUE, "x-first-death-reason": "expired"})
    _, failure = records.read(forged, "shop", "")
    assert (failure.reason, failure.error_type, failure.worker, failure.handler) == ("expired", "", "", "reserve")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ""),
        ({"cloudEvents_type": "order.placed"}, "order.placed"),
        ({ROUTING_KEY: "order.moved"}, "order.moved"),
    ],
)
@pytest.mark.parametrize("direct", [False, True], ids=["as it came", "carried"])
def test_no_queue_is_taken_for_the_type_of_what_the_broker_gave_up_on(
    headers: dict[str, Any], expected: str, direct: bool
) -> None:
    died = {records.FIRST_DEATH: QUEUE, "x-first-death-reason": "expired"}
    message, failure = records.read(
        entry(0, headers | ({records.ENTRY_KEY: QUEUE} if direct else died), direct=direct), "shop", ""
    )
    assert message.type == expected
    assert failure.handler == "reserve"
