"""Messages without an id whose letters come to two generations at once: each is one letter, and none is lost."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from bus.transport.rabbitmq import records
from bus.transport.rabbitmq.fold import CUT, DISCARDED, INTO, KEY, LETTER, MARK, TOKEN, Fold, Noted

from .test_fold import NOON, entry


EXPIRED = {records.FIRST_DEATH: "shop.reserve", "x-first-death-reason": "expired"}


class Streams:
    """Two generations; what comes goes to those that are bound."""

    def __init__(self, random: Random) -> None:
        self.entries: dict[int, list[tuple[dict[str, Any], bytes, bool]]] = {0: [], 1: []}
        self.bound = {0}
        self.came = 0
        self._random = random

    def come(self, most: int = 3) -> None:
        for _ in range(self._random.randrange(most + 1)):
            self.came += 1
            body = self._random.choice((b"a", b"b"))
            for generation in self.bound:
                self.entries[generation].append((EXPIRED, body, False))

    def put(self, generation: int, told: dict[str, Any]) -> None:
        self.entries[generation].append((told, b"", True))

    def cut(self, *, whole: bool = True) -> None:
        told = {MARK: CUT, INTO: 1, TOKEN: f"{self._random.random()}"}
        for generation in (1, 0)[: 2 if whole else 1]:
            self.put(generation, told)

    def fold(self, *generations: int) -> Fold:
        folded = Fold("shop", "")
        for generation in generations:
            for offset, (told, body, direct) in enumerate(self.entries[generation]):
                folded.add(entry(offset, told, body, generation=generation, direct=direct))
        return folded


def is_open(folded: Fold) -> list[bytes]:
    return [row.key for row in folded.rows.values() if folded.is_open(row)]


@pytest.mark.parametrize("seed", range(20))
def test_each_message_is_one_letter_however_a_compaction_goes(seed: int) -> None:
    random = Random(seed)
    streams = Streams(random)
    streams.come()
    streams.bound = {0, 1}
    streams.come()
    assert len(is_open(streams.fold(0, 1))) == streams.came
    for _ in range(random.randrange(3)):
        streams.come()
        streams.cut(whole=False)  # the compaction ends here, and is run again
        streams.come()
        assert len(is_open(streams.fold(0, 1))) >= streams.came
    streams.cut()
    streams.come()
    assert len(is_open(streams.fold(0, 1))) == streams.came
    streams.bound = {1}
    streams.come()
    both = streams.fold(0, 1)
    assert len(is_open(both)) == streams.came
    closed = random.sample(list(both.rows.values()), min(2, len(both.rows)))
    for row in closed:
        noted = Noted(DISCARDED, row.id, row.key, row.place, row.turn, "somebody", NOON, row.id)
        streams.put(1, noted.headers())
    folded = streams.fold(0, 1)
    left = is_open(folded)
    for row in folded.rows.values():
        if row.generation == 0 and folded.is_open(row):
            streams.put(1, {LETTER: row.id, KEY: row.key.hex(), records.MADE_ID: "made"})
    assert sorted(is_open(streams.fold(1))) == sorted(left)
    assert {row.id for row in streams.fold(1).rows.values() if row.key in left} == {folded.rows[k].id for k in left}


def test_what_comes_to_a_generation_without_a_cut_is_kept_where_it_has_no_older_one() -> None:
    streams = Streams(Random(1))
    streams.entries[1] = [(EXPIRED, b"a", False)] * 2
    assert len(is_open(streams.fold(1))) == 2
