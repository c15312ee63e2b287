"""Topic patterns mean what AMQP says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import ConfigurationError
from bus.topic import check, matches


def naive(pattern: list[str], key: list[str]) -> bool:
    """AMQP's words, tried one by one."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return naive(pattern[1:], key) or (bool(key) and naive(pattern, key[1:]))
    return bool(key) and pattern[0] in ("*", key[0]) and naive(pattern[1:], key[1:])


words = st.sampled_from(["a", "b", "order", "x.y".replace(".", "-")])


@given(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5), st.lists(words, max_size=6))
def test_patterns_match_as_tried_word_by_word(pattern: list[str], key: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(key)) == naive(pattern, key)


def test_a_dot_in_a_pattern_is_a_dot() -> None:
    assert not matches("a.b", "axb")
    assert not matches("*", "a.b")


@pytest.mark.parametrize("wrong", ["", "a..b", ".a", "a.", "ord*", "a.#b", "x" * 256])
def test_what_amqp_does_not_take_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="topic pattern"):
        check(wrong)
