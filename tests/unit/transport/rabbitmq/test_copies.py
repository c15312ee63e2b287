"""Copies: what they leave behind, so that the broker does not act on it again."""

from __future__ import annotations

from typing import Any

from bus.transport.rabbitmq import copies, wire


def test_a_replay_does_not_expire_at_once_where_the_broker_kept_its_expiration() -> None:
    replayed = read(*copies.replay(raw({"expiration": "1", "user_id": "them", "headers": {"a": "b"}}), {}, "token"))
    assert "expiration" not in replayed
    assert "user_id" not in replayed
    assert (
        replayed["headers"]
        | {
            "a": "b",
            "tidegate-original-expiration": "1",
            "tidegate-original-user_id": "them",
        }
        == replayed["headers"]
    )


def raw(properties: dict[str, Any]) -> bytes:
    flags, encoded = copies.encode(properties)
    return bytes(12) + flags.to_bytes(2, "big") + encoded


def read(flags: int, encoded: bytes) -> dict[str, Any]:
    return wire.properties(bytes(12) + flags.to_bytes(2, "big") + encoded)
