"""Where replies are sent to: what a broker made for somebody who waits, and nothing else."""

from __future__ import annotations

from base64 import b64encode
from datetime import timedelta

import pytest

from bus import Event, Service
from bus.failure import failure
from bus.outcome import Retry
from bus.transport.rabbitmq import copies, envelope, wire
from bus.transport.rabbitmq.answers import node_of
from tests.unit.played import Played


KEY = ".oQhZMUlK2lDtEJ8+Z6PbQg=="
DIRECT = "amq.rabbitmq.reply-to.g1h2AA9yZXBseUAxMzM1NTE5MjQAAAK1AAAAAGsIwoc=" + KEY


def of(process: bytes) -> str:
    return f"amq.rabbitmq.reply-to.{b64encode(process).decode()}{KEY}"


def test_the_address_of_a_channel_tells_its_node() -> None:
    assert node_of(DIRECT) == "reply@133551924"


def test_a_queue_that_the_broker_named_is_an_address() -> None:
    assert node_of("amq.gen-JzTY20BRgKO-HjmUJj0wLg") == ""


@pytest.mark.parametrize(
    "address",
    [
        "",
        "inventory.reserve_stock",
        "amq.rabbitmq.reply-to",
        "amq.rabbitmq.reply-to.",
        "amq.gen",
        DIRECT.removesuffix(KEY),
        DIRECT.removesuffix("=="),
        DIRECT + ".",
        DIRECT + "\n",
        DIRECT.replace("g1h2", "g1h!"),
        of(b"\x83a\x01" + b"a" * 40),
        of(b"\x83Xv\x00\x0freply@133551924" + bytes(11)),
        of(b"\x83Xv\x00\x0freply@133551924" + bytes(13)),
        of(b"\x83Xv\x00\x0ereply@133551924" + bytes(12)),
        of(b"\x83Xv\x00\x0freply@13355192x" + bytes(12)),
        of(b"\x83gv\x00\x0freply@133551924" + bytes(12)),
    ],
)
def test_what_no_broker_made_is_none(address: str) -> None:
    assert node_of(address) is None


class Asked(Event, type="quote.asked"):
    pass


quotes = Service("quotes")


@quotes.on(Asked)
async def quote(asked: Asked) -> None: ...


def retried(**properties: object) -> dict[str, object]:
    """Return the properties of a retry copy of a message with these."""
    flags, encoded = copies.encode(properties)
    raw = bytes(12) + wire.U16.pack(flags) + encoded
    message = envelope.decode(raw, b"{}", "quote.asked", ours=False).message
    failed = failure(quotes.handlers[0], Played(), "failed", ValueError())
    flags, encoded = copies.retry(raw, message, "quote.asked", Retry(timedelta(), failed, 2), {})
    return wire.properties(bytes(12) + wire.U16.pack(flags) + encoded)


def test_a_copy_of_a_request_tells_where_the_answer_is_waited_for() -> None:
    headers = {"tidegate-wants": "quote.given", "tidegate-reply-to": DIRECT, "tidegate-forged": "1"}
    copied = retried(reply_to=DIRECT, correlation_id="c", headers=headers, message_id="m")
    assert (copied["reply_to"], copied["correlation_id"]) == (DIRECT, "c")
    kept = copied["headers"]
    assert isinstance(kept, dict)
    assert {name: kept.get(name) for name in headers} == {**headers, "tidegate-forged": None}


def test_a_copy_has_no_address_that_means_whoever_publishes_it() -> None:
    copied = retried(reply_to="amq.rabbitmq.reply-to", message_id="m")
    assert "reply_to" not in copied
    kept = copied["headers"]
    assert isinstance(kept, dict)
    assert kept["tidegate-original-reply_to"] == "amq.rabbitmq.reply-to"
