"""What a container is asked for its health with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from .compose import DEPLOY


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.end_headers()
        self.wfile.write(b"a reason")

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def ask(path: str, http: str) -> tuple[int, str]:
    asked = [sys.executable, DEPLOY / "healthy.py", path]
    done = subprocess.run(asked, env={"BUS_HTTP": http}, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_worker_is_healthy_where_it_answers_200(port: int, host: str) -> None:
    assert ask("/livez", f"{host}:{port}") == (0, "200 a reason")
    assert ask("/readyz", f"{host}:{port}") == (1, "503 a reason")


def test_a_worker_that_does_not_answer_is_told_in_a_line() -> None:
    code, told = ask("/livez", "127.0.0.1:1")
    assert code == 1
    assert told.startswith("no answer at 127.0.0.1:1: ")
    assert ask("/livez", "") == (1, "BUS_HTTP is not set, so the worker answers nobody")
