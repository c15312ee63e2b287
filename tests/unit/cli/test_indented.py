"""JSON on lines of its own: for people, and the same JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.cli.indented import indented


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 3]))
def test_it_is_as_python_indents_it(value: object, escaped: bool, indent: int | None) -> None:
    written = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    assert indented(written) == json.dumps(value, indent=2, ensure_ascii=False)


@pytest.mark.parametrize("number", ["12345678901234567.89", "123456789012345678901234", "1.10", "1E400", "-0", "NaN"])
def test_a_number_stays_as_it_was_written(number: str) -> None:
    assert indented(f'{{"a":[{number}]}}'.encode()) == f'{{\n  "a": [\n    {number}\n  ]\n}}'


def test_a_name_that_comes_twice_stays_and_half_a_letter_is_told_by_its_number() -> None:
    assert indented(b'{"a":1,"a":"\\u00e4\\ud83d\\ude00","b":"\\ud83d"}') == (
        '{\n  "a": 1,\n  "a": "ä😀",\n  "b": "\\ud83d"\n}'
    )


@pytest.mark.parametrize("body", [b"", b"{", b"soup", b'"\xff"', b"[" * 1_000_000, b'{"a":1}}'])
def test_what_is_no_json_is_none(body: bytes) -> None:
    assert indented(body) is None
