"""Supervised: what a worker's process has of its supervisor: a socket on which it is asked, and whose end ends it.

Lines of JSON go both ways. The supervisor asks `{"id": 1, "method": "GET", "path": "/readyz", "until": …}` and is
answered `{"id": 1, "status": 200, "body": …}`; what the process tells unasked has no id. A thread answers, so that a
process whose event loop is blocked says so. What it reads only after `until`, which is a time of the machine's
monotonic clock, is not done: it stood still, and its supervisor has given it up.
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
from contextlib import suppress
from typing import Any, Final

from .. import clock
from ..endpoint import Answer, Request
from ..health import Health
from ..logs import logger


MARGIN: Final = 5.0
"""Seconds that a process has to end after its grace is over."""
WITHIN: Final = 0.5
"""Seconds that an event loop has to answer."""


class Supervised:
    """A process's place: the name by which its supervisor knows it, and the socket that the supervisor left open.

    Once the supervisor is gone, the process stops as after SIGTERM, and ends within `grace` seconds and a margin.
    """

    def __init__(self, name: str, descriptor: int, grace: float) -> None:
        # no child of this process may inherit it
        os.set_inheritable(descriptor, False)
        self.name = name
        self._socket = socket.socket(fileno=descriptor)
        self._grace = grace
        self._sending = threading.Lock()
        self._answer: Callable[[Request], Answer] = lambda _: Answer(503, "it starts")
        threading.Thread(target=self._watch, name="supervised", daemon=True).start()

    def answering(self, answer: Callable[[Request], Answer]) -> None:
        """Let this answer from now on, in a thread."""
        self._answer = answer
        self.tell(answering=True)

    def tell(self, **fields: Any) -> None:
        """Tell the supervisor something; nothing happens where it is gone."""
        with self._sending:
            try:
                self._socket.sendall(json.dumps(fields).encode() + b"\n")
            except OSError:
                return  # the thread sees that as well

    def _watch(self) -> None:
        # a signal that came to this thread would not wake the main one from what blocks it
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._read()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            with suppress(RuntimeError):  # no thread can be had
                # a log that nobody reads on holds up whoever writes to it
                threading.Thread(target=_tell_gone, name="supervisor gone", daemon=True).start()
            time.sleep(self._grace + MARGIN)
            os._exit(1)

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    asked = json.loads(line)
                    if clock.monotonic() > asked["until"]:
                        continue
                    try:
                        answer = self._answer(Request(asked["method"], asked["path"], local=True))
                    except Exception:
                        # whoever asks must not end the process
                        logger().exception("not answered", method=asked["method"], path=asked["path"])
                        answer = Answer(500, "it could not be told: see the log")
                    self.tell(id=asked["id"], status=answer.status, body=answer.body)
        except OSError:
            return  # reset: the supervisor is gone


def _tell_gone() -> None:
    logger().error("supervisor gone", told="nobody would start this process again: it stops")


def threadsafe(health: Health) -> Callable[[Request], Answer]:
    """Return how another thread than the loop's may ask for a worker's health; to be called on the loop."""
    loop = asyncio.get_running_loop()

    def answer(asked: Request) -> Answer:
        if asked.method == "GET":
            return health.answer(asked)
        return on_loop(loop, lambda: health.answer(asked))

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
