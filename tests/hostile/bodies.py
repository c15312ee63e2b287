"""Bodies that strangers send: what is no JSON, what is JSON and too much, and envelopes that are broken."""

from __future__ import annotations

import gzip

from hypothesis import strategies as st

from .fields import BYTES


LARGE = 100_000
"""More bytes than the worker takes."""
ENVELOPES = [
    b'{"specversion": "1.0", "id": "s", "source": "/s", "type": "hostile.structured", "data": {"number": 1}}',
    b'{"specversion": "1.0", "type": 7}',
    b'{"specversion": "1.0", "type": "t", "tenant": "e", "cc": "x", "at": [], "data": {"number": 1}}',
    b'{"type": "t", "datacontenttype": "text/plain", "traceparent": {"a": 1}, "data": {"number": 1}}',
    b'{"specversion": "1.0", "type": "t", "data_base64": "!"}',
    b'{"specversion": "1.0", "type": "t", "id": {"a": 1}, "time": [], "data": {"number": 1}}',
    b'{"specversion": "1.0", "type": "t", "id": "' + b"i" * 70_000 + b'", "data": {"number": 1}}',
    b'{"specversion": "0.3", "type": "t", "id": "\\ud800", "source": "\\u0000", "data": {"number": 1}}',
    b'{"specversion": "1.0", "type": "t", "expirytime": "1970-01-01T00:00:00Z", "data": {"number": 1}}',
    b'{"specversion": "1.0", "type": "t", "type": "u", "id": null, "data": {"specversion": "1.0", "number": 1}}',
    b'{"specversion": "1.0", "type": "t", "tidegate-attempt": 9, "correlationid": false, "data": {"number": 1}}',
    b'[{"specversion": "1.0", "id": "b", "source": "/b", "type": "t", "data": {"number": 1}}]',
    b"[]",
]
"""Structured mode: whole, broken, and in batches."""
NUMBERED = [
    *rb'1e999 -0 NaN -Infinity 1_000 0x10 1.5 true null 1e-999999999 "1" "\ud800"'.split(),
    *(b'"\xed\xa0\x80"', b'"\xd9\xa1"', b"9" * 5000),
    *(b"[" * 900 + b"]" * 900, b'{"number": ' * 1100 + b"1" + b"}" * 1100),
]
"""Values of the field that the typed handler reads."""
BODIES = st.one_of(
    st.just(b"{}"),
    BYTES,
    st.sampled_from(ENVELOPES),
    st.sampled_from(NUMBERED).map(lambda number: b'{"number": ' + number + b"}"),
    st.sampled_from(
        [
            *(b"[" * 2000, b"[" * 50_000, b"null", b"\x00" * 50, b"\x00" * LARGE),
            *(b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00"),
            *(b'{"number": 1, "number": "x"}', b'{"number": 1, "\\ud800": 1, "": {}}', b'{"number": 1, "number": 1}'),
            b"{" + b", ".join(b'"k%d": %d' % (number, number) for number in range(3000)) + b', "number": 1}',
            gzip.compress(b"0" * 10_000_000, mtime=0),
            gzip.compress(b'{"number": 1}', mtime=0),
        ]
    ),
)
