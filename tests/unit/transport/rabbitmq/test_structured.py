"""Envelopes of structured mode that no SDK makes."""

from __future__ import annotations

import pytest

from bus.transport.rabbitmq.structured import opened


JSON = "application/cloudevents+json"


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b'{"type": "t", "data": 1, "data_base64": "AA=="}', b"\x00"),
        (b'{"type": "t", "data_base64": ""}', b""),
        (b'{"type": "t", "data": null}', b"null"),
        (b'{"type": "t"}', b""),
        (b'{"type": "t", "data": "x", "datacontenttype": 7}', b'"x"'),
        (b'{"type": "t", "data": [1e999]}', b'["Infinity"]'),
    ],
)
def test_the_data_leaves_the_envelope(body: bytes, data: bytes) -> None:
    problems: list[str] = []
    found = opened(JSON, body, problems, plain=True)
    assert found is not None
    assert (found[1], problems) == (data, [])
    assert found[0].keys() <= {"type", "datacontenttype"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"specversion": "1.0", "type": "t", "data": ' + b"[" * 100_000,
        b'{"specversion": "1.0", "type": "t", "data": "\xff"}',
        b'{"specversion": "1.0", "type": "t", "data": "\\ud800"}',
        b'{"specversion": "1.0", "type": "t", "data_base64": 7}',
        b'{"specversion": "1.0", "type": ["t"]}',
        b'{"specversion": "1.0", "type": "t", "n": ' + b"9" * 10_000 + b"}",
    ],
    ids=["deep", "bytes", "surrogate", "base64", "type", "number"],
)
def test_what_is_no_envelope_is_a_problem_where_it_was_declared(body: bytes) -> None:
    problems: list[str] = []
    assert opened(JSON, body, problems, plain=True) is None
    assert len(problems) == 1
    assert problems[0].startswith("structured mode: ")
    assert len(problems[0]) < 300
    assert opened("text/plain", body, problems, plain=True) is None
    assert len(problems) == 1


def test_only_what_has_no_headers_is_looked_into_undeclared() -> None:
    body = b'{"specversion": "1.0", "type": "t", "data": 1}'
    assert opened("", body, [], plain=False) is None
    assert opened("", body, [], plain=True) == ({"specversion": "1.0", "type": "t"}, b"1")
