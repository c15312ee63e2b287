"""The inbox of a subscription: what has come and nobody took yet, handed out a few a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sized
from typing import Final

from ...errors import TidegateError
from . import wire
from .channel import Channel, Received


PER_TURN: Final = 8
"""Deliveries that an inbox beside others hands out in one turn of the event loop. What comes for its neighbours is
seen between two turns, so a flooded queue must not make them long; alone, nothing is to be had from more turns."""


class Inbox:
    """Deliveries that nobody took yet, in their order; whoever waits gets the next. It outlives channels.

    `among` are the inboxes of the process, this one too. `done` is asked of what comes again, as it comes: whether
    nothing is left to do with it.
    """

    def __init__(self, among: Sized) -> None:
        self.ready: deque[Received] = deque()
        self.done: Callable[[Received], bool] = lambda _: False
        self._among = among
        self._left = PER_TURN
        self._waiting: deque[asyncio.Future[Received]] = deque()
        self._error: TidegateError | None = None

    def put(self, received: Received) -> None:
        """Hand a delivery to who has waited longest, or keep it."""
        if wire.redelivered(received.method) and self.done(received):
            return
        self.ready.append(received)
        self._pass_on()

    async def get(self) -> Received:
        """Return the next delivery, in this turn of the loop if it may be; a cancelled wait loses nothing."""
        if self.ready and self._left:
            return self._take()
        if self._error is not None and not self.ready:
            raise self._error
        waiter: asyncio.Future[Received] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.ready.appendleft(waiter.result())
                self._pass_on()
            raise

    def take_back(self, channel: Channel) -> list[Received]:
        """Remove and return what came by this channel and nobody took."""
        mine = [received for received in self.ready if received.channel is channel]
        self.ready = deque(received for received in self.ready if received.channel is not channel)
        return mine

    def fail(self, error: TidegateError) -> None:
        """Tell everyone who waits, now and later, that there will be no delivery."""
        self._error = error
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(error)
        self._waiting.clear()

    def _take(self) -> Received:
        if len(self._among) > 1:
            if self._left == PER_TURN:
                asyncio.get_running_loop().call_soon(self._turn)
            self._left -= 1
        return self.ready.popleft()

    def _turn(self) -> None:
        self._left = PER_TURN
        self._pass_on()
        if self._error is not None and not self.ready:
            self.fail(self._error)

    def _pass_on(self) -> None:
        while self._waiting and self.ready and self._left:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(self._take())
