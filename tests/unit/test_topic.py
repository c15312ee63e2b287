"""Topic patterns mean what AMQP says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import ConfigurationError
from bus.topic import check, matches, matches_any


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


@pytest.mark.parametrize(
    "wrong",
    ["", ".", "a..b", ".a", "a.", "ord*", "a.#b", "**", "*#", "x" * 256, "é" * 128, "a b", "a. b", "a\n", "\u00a0a"],
)
def test_what_is_no_pattern_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="topic pattern"):
        check(wrong)


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("#", "", True),
        ("#", "a", True),
        ("#", "a.b.c", True),
        ("*", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("a", "", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "ab", False),
        ("#.a", "a", True),
        ("#.a", "b.c.a", True),
        ("#.a", "a.b", False),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b.c", False),
        ("a.*.z", "a.b.z", True),
        ("a.*.z", "a.z", False),
        ("*.b.*", "a.b.c", True),
        ("#.*", "", False),
        ("#.*", "a", True),
        ("*.#", "a.b", True),
        ("#.#", "", True),
        ("#.b.#", "a.b.c", True),
        ("#.b.#", "a.c", False),
        ("order.placed", "order.placed", True),
        ("order.placed", "order.placed.twice", False),
        ("order+", "orderrr", False),
        ("a b", "a b", True),
        ("#", "a\nb.c", True),
        ("*", "a\nb", True),
        ("größe.*", "größe.é", True),
        # a foreign key may have empty words: each counts as one
        ("*.*", "a.", True),
        ("*", "a.", False),
        ("*.*", ".", True),
        ("#", "..", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) == expected


def test_one_of_several_patterns_is_enough() -> None:
    assert matches_any(["x", "a.*"], "a.b")
    assert not matches_any(["x", "a"], "a.b")
    assert not matches_any([], "a.b")


@pytest.mark.parametrize("pattern", ["a", "#", "*", "a.*.#", "order.placed", "x" * 255, "é" * 127, "A-b_c.d"])
def test_what_is_a_pattern_is_taken(pattern: str) -> None:
    assert check(pattern) == pattern


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_a_pattern_is_taken_or_refused_and_what_is_taken_can_be_matched(pattern: str) -> None:
    try:
        check(pattern)
    except ConfigurationError as error:
        assert repr(pattern) in str(error)
    else:
        assert len(pattern.encode()) <= 255
        assert matches(pattern, pattern)
