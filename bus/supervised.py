"""Supervised: what a worker's process has of its supervisor: a socket on which it is asked, and whose end ends it.

Lines of JSON go both ways. The supervisor asks `{"id": 1, "method": "GET", "path": "/readyz"}` and is answered
`{"id": 1, "status": 200, "body": …}`; what the process tells unasked has no id. A thread answers, so that a process
whose event loop is blocked says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from .endpoint import Answer
from .health import Health
from .logs import logger


MARGIN: Final = 5.0
"""Seconds that a process has to end after its grace is over."""
WITHIN: Final = 0.5
"""Seconds that an event loop has to answer."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """A process's place: the name by which its supervisor knows it, and the file descriptor of its socket."""

    name: str
    socket: socket.socket

    @staticmethod
    def by(name: str, descriptor: int) -> Supervised:
        """Take the socket that the supervisor left open; no child of this process inherits it."""
        os.set_inheritable(descriptor, False)
        return Supervised(name, socket.socket(fileno=descriptor))

    def tell(self, **fields: Any) -> None:
        """Tell the supervisor something, in one write; nothing happens where it is gone."""
        try:
            self.socket.sendall(json.dumps(fields).encode() + b"\n")
        except OSError:
            return  # `answering` sees that as well, and ends the process

    def answering(self, grace: float, answer: Callable[[str, str], Answer]) -> None:
        """Answer in a thread from now on. Once the supervisor is gone, stop as after SIGTERM, within `grace`."""

        def work() -> None:
            try:
                self._answer(answer)
            finally:
                logger().error("supervisor gone", told="nobody would start this process again: it stops")
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(grace + MARGIN)
                os._exit(1)

        threading.Thread(target=work, name="supervised", daemon=True).start()
        self.tell(answering=True)

    def _answer(self, answer: Callable[[str, str], Answer]) -> None:
        try:
            with self.socket.makefile("rb") as lines:
                for line in lines:
                    asked = json.loads(line)
                    answered = answer(asked["method"], asked["path"])
                    self.tell(id=asked["id"], status=answered.status, body=answered.body)
        except OSError:
            return  # reset: the supervisor is gone as well


def threadsafe(health: Health) -> Callable[[str, str], Answer]:
    """Return how another thread than the loop's may ask for a worker's health; to be called on the loop."""
    loop = asyncio.get_running_loop()

    def answer(method: str, path: str) -> Answer:
        if method == "GET":
            return health.answer(method, path, local=True)
        return on_loop(loop, lambda: health.answer(method, path, local=True))

    return answer


def on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], Answer]) -> Answer:
    """Return what a call on the loop answers, from another thread; 503 where the loop does not come to it in time."""
    done: Future[Answer] = Future()

    def run() -> None:
        if done.set_running_or_notify_cancel():
            done.set_result(call())

    try:
        loop.call_soon_threadsafe(run)
        return done.result(WITHIN)
    except (TimeoutError, RuntimeError):
        done.cancel()
        return Answer(503, "its event loop is blocked: nothing was done")
