"""Headers that strangers forge: names that mean something to the broker or to Tidegate, and headers in bulk."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from bus.message import CLOUDEVENTS_PREFIXES
from bus.transport.rabbitmq.envelope import KNOWN

from .fields import BYTES, NAMES, SCALARS, VALUES, array, nested, string, table, whole


FORGED = "hostile.spy"
"""The queue that forged routing names; no message of ours may ever reach it."""

DEATH = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["q", "hostile.spy", "delay.3", "hostile.retry.300", "hostile.fine"]).map(string)
        | SCALARS,
        "exchange": st.sampled_from(["", "events", "hostile.return", "delay.due"]).map(string) | SCALARS,
        "reason": st.sampled_from(["expired", "rejected", "delivery_limit", "maxlen"]).map(string) | SCALARS,
        "count": st.sampled_from([1, 99, -1, 1 << 62]).map(whole) | SCALARS,
        "routing-keys": st.just(array(string(FORGED))),
        "original-expiration": st.just(string("1")) | SCALARS,
        "time": st.just(b"T" + struct.pack(">Q", 1)) | SCALARS,
    },
).map(lambda death: table([(name.encode(), value) for name, value in death.items()]))
"""One entry of `x-death`."""
DEATHS = st.one_of(
    st.lists(DEATH, min_size=1, max_size=2).map(lambda deaths: array(*deaths)),
    st.lists(DEATH, min_size=1, max_size=2).map(lambda deaths: array(*deaths * 20)),
    st.lists(SCALARS, max_size=3).map(lambda scalars: array(*scalars)),
    DEATH,
    SCALARS,
)

MEANINGFUL = {
    "x-death": DEATHS,
    "x-first-death-queue": st.just(string("hostile.fine")),
    "x-first-death-reason": st.just(string("expired")),
    "x-delivery-count": st.sampled_from([whole(1000), whole(-1), string("9")]),
    "x-acquired-count": st.just(whole(1000)),
    "x-stream-offset": st.sampled_from([whole(1 << 60), string("last")]),
    "x-anything": SCALARS,
    "tidegate-attempt": st.sampled_from([whole(10**9), whole(-5), whole(3), string("many"), string("2")]),
    "tidegate-first-failed-at": st.sampled_from(["2001-01-01", "9999-12-31T23:59:59-23:59", "soon"]).map(string),
    "tidegate-hops": st.sampled_from([whole(-1), whole(5), string("many"), whole(1 << 62)]),
    "tidegate-routing-key": VALUES,
    "tidegate-routed": st.sampled_from([b"t\x01", string("yes")]),
    "tidegate-id": VALUES,
    "tidegate-nested": st.sampled_from(["{", "[]", '{"CC": ["hostile.spy"]}', "7"]).map(string),
    "tidegate-wrapped": st.sampled_from([b"t\x01", whole(1), whole(-1), string("AAAA"), string("=")]),
    "tidegate-failure-service": st.just(string("elsewhere")),
    "tidegate-failure-handler": st.just(string("spy")),
    "tidegate-failure-attempts": st.sampled_from([string("9" * 5000), whole(7), string("²")]),
    "tidegate-failure-last-failed-at": st.sampled_from([string("2001-01-01"), b"V"]),
    "tidegate-failure-unheard-of": VALUES,
    "tidegate-mark": st.sampled_from(["discarded", "replayed", "claim", "released"]).map(string),
    "tidegate-letter": st.integers(0, 20).map(lambda offset: string(f"0-{offset}")),
    "tidegate-token": SCALARS,
    "tidegate-at": st.sampled_from(["2001-01-01", "soon"]).map(string),
    "tidegate-suspect": st.just(string("fine 1")),
    "tidegate-begun": st.just(b"t\x01"),
    "tidegate-due": st.sampled_from(["events", "queue"]).map(string),
    "tidegate-d0": st.sampled_from([b"t\x01", b"t\x00"]),
    "tidegate-d27": st.just(b"t\x01"),
    "tidegate-original-CC": st.just(array(string(FORGED))),
    "tidegate-original-expiration": st.just(string("1")),
    "tidegate-original-": SCALARS,
    "CC": st.sampled_from([array(string(FORGED), string(f"0.{FORGED}"), string(f"300.{FORGED}")), array(whole(1))]),
    "BCC": st.just(array(string(FORGED), string(f"0.{FORGED}"))),
    "cloudEvents_id": VALUES,
    "cloudEvents_type": VALUES,
    "cloudEvents_time": SCALARS,
    "cloudEvents_source": SCALARS,
    "cloudEvents_specversion": SCALARS,
    "cloudEvents_dataschema": SCALARS | st.just(string("urn:tidegate:x:" + "9" * 300)),
    "cloudEvents_correlationid": SCALARS,
    "cloudEvents_expirytime": st.sampled_from(["soon", "9999-12-31T23:59:59-23:59", "2999-01-01"]).map(string),
    "ce-id": SCALARS,
    "cloudEvents:subject": SCALARS,
    "ce-tenant": VALUES,
    "cloudEvents_tenant": VALUES,
    "cloudEvents:tenant": SCALARS,
    "cloudEvents_cc": SCALARS,
    "tidegate-original-ce-tenant": SCALARS,
    "tenant": VALUES,
    "traceparent": BYTES.map(string) | st.just(string("t" * 2_000)),
    "tracestate": SCALARS,
}
"""Headers that mean something to the broker or to Tidegate, forged."""

REFUSED = [b"d" + struct.pack(">d", number) for number in (float("nan"), float("inf"))] + [b"Z", b"S\0\0\xff\xff"]
"""Values over which RabbitMQ closes the connection of whoever sends them."""
FIELDS = st.tuples(NAMES, VALUES)
RIGHT = st.sampled_from(sorted(MEANINGFUL)).flatmap(
    lambda name: MEANINGFUL[name].map(lambda value: (name.encode(), value))
)
"""Forged as its reader expects it."""
MISNAMED = [
    *(prefix + name for prefix in CLOUDEVENTS_PREFIXES for name in sorted(KNOWN)),
    *("X-Death", "Tidegate-attempt", "cloudevents_id", "CE-ID", "cloudEvents_", "cloudEvents:", "ce-"),
    *("tidegate-waits-since", "tidegate-reply-to", "tidegate-wants", "tidegate-failure-", "tidegate-d", "tidegate-"),
    *("x-last-death-queue", "x-last-death-reason", "x-opt-delivery-delay", "x-delay", "x-match", "x-received-from"),
    *("x-stream-filter-value", "x-priority"),
]
WRONG = st.tuples(
    # the broker refuses a CC or BCC that is no list
    st.sampled_from(sorted({*MEANINGFUL, *MISNAMED} - {"CC", "BCC"})).map(str.encode),
    VALUES,
)
"""Any of these names with any value."""
FORGERIES = RIGHT | RIGHT | WRONG


@dataclass(frozen=True)
class Bulk:
    """Headers of one kind, many or large: short to tell, and made when they are needed."""

    kind: str
    amount: int

    def fields(self) -> list[tuple[bytes, bytes]]:
        """Return them."""
        if self.kind == "large":
            return [(b"h%d" % number, string("x" * 1000)) for number in range(self.amount)]
        if self.kind == "moved":  # each has a longer name on a copy
            return [(b"x-%d" % number, b"V") for number in range(self.amount)]
        return [(b"deep", nested(self.amount, self.kind))]


BULKS = st.sampled_from(
    [
        *(Bulk("large", kilobytes) for kilobytes in (2, 20, 46, 47, 60, 100, 120)),
        *(Bulk("moved", amount) for amount in (1_000, 2_000, 6_000)),
        *(Bulk(kind, levels) for kind in "FA" for levels in (10, 63, 64, 65, 100)),
    ]
)
HEADERS = st.one_of(
    st.lists(FIELDS | FORGERIES | FORGERIES, max_size=8),
    st.lists(FORGERIES, min_size=1, max_size=4),
    st.lists(FIELDS, max_size=6).map(lambda fields: fields + fields[:1]),
    BULKS,
)
