"""Where replies are sent to: what a broker made for somebody who waits, and nothing else."""

from __future__ import annotations

from base64 import b64encode

import pytest

from bus.transport.rabbitmq.answers import node_of


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
