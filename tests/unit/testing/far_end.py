"""The far end of a connection, which knows nothing of event loops: a database, say."""

from __future__ import annotations

import socket
import time


def answer(connection: socket.socket) -> None:
    """Answer each byte after 50 ms, until the connection is closed."""
    with connection:
        while connection.recv(1):
            time.sleep(0.05)
            connection.sendall(b"x")
