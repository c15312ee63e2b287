"""Replies: the requests of this process that wait, and what comes back for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .errors import BusUnavailable, Fate, RequestFailed, Undecodable
from .event import Event, decode, type_of
from .logs import logger
from .message import Message


class Failed(Event, type="tidegate.failed"):
    """What a requester is told of a handler that gave up; it goes to the requester alone."""

    handler: str
    reason: str
    error_type: str
    error: str


FAILED: Final = type_of(Failed)


class Replies:
    """Who waits for which type of reply, by the id of the request, which is the reply's correlation id.

    What nobody waits for is dropped and counted: it came too late, or was not the first, or is a stranger's.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._waiting: dict[str, tuple[str | None, asyncio.Future[Message]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def expected(self, request: Message) -> Iterator[asyncio.Future[Message]]:
        """Wait for the reply to a request meanwhile; the future has it, or RequestFailed where a handler gave up."""
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = request.wants, reply
        try:
            yield reply
        finally:
            del self._waiting[request.id]
            if not reply.cancel() and not reply.cancelled():
                reply.exception()  # whoever waited may have left

    def arrived(self, message: Message) -> None:
        """Take a reply. One that says nothing of its type is a plain client's, and taken for what is waited for."""
        wants, reply = self._waiting.get(message.correlation_id or "", (None, None))
        if reply is None or reply.done():
            self._drop(message)
        elif message.type == FAILED:
            try:
                told = decode(Failed, message.body)
            except Undecodable:
                self._drop(message)
            else:
                reply.set_exception(RequestFailed(told.handler, told.reason, told.error_type, told.error))
        elif message.type in (wants, ""):
            reply.set_result(message)
        else:
            self._drop(message)

    def lost(self, why: str) -> None:
        """Fail what waits: the connection is gone on which the replies would have come."""
        for id, (_, reply) in self._waiting.items():
            if not reply.done():
                told = f"no reply can come any more, as the connection is gone ({why}); the request may be handled yet"
                reply.set_exception(BusUnavailable(told, {id: Fate.STORED}))

    def _drop(self, message: Message) -> None:
        self.dropped += 1
        if self.dropped == 1:
            told = {"type": message.type, "source": message.source, "correlation_id": message.correlation_id}
            logger().info("a reply was dropped: nobody waits for it, or not any more; later ones are counted", **told)
