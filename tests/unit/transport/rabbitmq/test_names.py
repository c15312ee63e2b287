"""Names: which addresses of a host are tried, in which order, and for how long they are looked up."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from bus.transport.rabbitmq.names import at_any_address


def known(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name have these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 1)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


async def tried(host: str, *there: str) -> list[str]:
    """Return the addresses that are tried until one is there; the last raises what it is."""
    seen: list[str] = []

    async def connect(address: str) -> None:
        seen.append(address)
        if address not in there:
            raise ConnectionRefusedError(address)

    try:
        await at_any_address(host, 1, connect, within=5)
    except ConnectionRefusedError as error:
        seen.append(f"refused {error}")
    return seen


async def test_the_next_address_is_tried_where_one_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, "::1", "127.0.0.1", "127.0.0.1", "10.0.0.1")
    assert await tried("broker", "127.0.0.1", "10.0.0.1") == ["::1", "127.0.0.1"]
    assert await tried("broker") == ["::1", "127.0.0.1", "10.0.0.1", "refused 10.0.0.1"]


async def test_an_address_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, "10.0.0.1")
    assert await tried("127.0.0.1", "127.0.0.1") == ["127.0.0.1"]
    assert await tried("::1", "::1") == ["::1"]


async def test_a_name_that_is_looked_up_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hangs(*_: Any, **__: Any) -> list[Any]:
        answered.wait(30)
        return []

    async def connect(address: str) -> None:
        pytest.fail(f"{address} is nobody's")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    try:
        with pytest.raises(TimeoutError):
            await at_any_address("broker", 1, connect, within=0.01)
    finally:
        answered.set()
