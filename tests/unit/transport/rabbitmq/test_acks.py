"""Acks in the fewest frames, checked against a broker that counts."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from bus.transport.rabbitmq.acks import Acks


class Broker:
    """The unacked tags of a channel, as a broker keeps them."""

    def __init__(self) -> None:
        self.unacked: set[int] = set()
        self.acked: set[int] = set()

    def take(self, frames: list[tuple[int, bool]]) -> None:
        for tag, multiple in frames:
            assert tag in self.unacked, "the broker closes a channel that acks an unknown tag"
            covered = {each for each in self.unacked if each <= tag} if multiple else {tag}
            self.unacked -= covered
            self.acked |= covered


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_what_was_finished_is_acked_once_and_nothing_else(seed: int, count: int) -> None:
    random, broker, acks = Random(seed), Broker(), Acks()
    running: list[int] = []
    finished: set[int] = set()
    given_back: set[int] = set()
    arriving = iter(range(1, count + 1))
    while len(acks) < count:
        assert len(acks) == len(finished) + len(given_back)
        match random.choice(("arrive", "finish", "finish", "give back", "flush")):
            case "arrive":
                if (tag := next(arriving, None)) is not None:
                    running.append(tag)
                    broker.unacked.add(tag)
            case "finish" if running:
                tag = running.pop(random.randrange(len(running)))
                acks.finished(tag)
                finished.add(tag)
            case "give back" if running:
                tag = running.pop(random.randrange(len(running)))
                acks.given_back(tag)
                given_back.add(tag)
                broker.unacked.remove(tag)
            case "flush":
                broker.take(acks.take())
                assert broker.acked == finished
    broker.take(acks.take())
    assert broker.acked == finished
    assert acks.take() == []


def test_an_unbroken_row_is_one_frame() -> None:
    acks = Acks()
    for tag in range(1, 101):
        acks.finished(tag)
    assert acks.take() == [(100, True)]


def test_a_gap_is_acked_around_by_single_tags_and_never_covered() -> None:
    acks = Acks()
    for tag in (1, 2, 4, 5):
        acks.finished(tag)
    assert acks.take() == [(2, True), (4, False), (5, False)]
    acks.finished(3)
    assert acks.take() == [(3, False)]
    acks.finished(6)
    acks.finished(7)
    assert acks.take() == [(7, True)]
