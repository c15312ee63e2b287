"""Which ways a message goes through the code: the steps from line to line, traced in this process without a broker."""

from __future__ import annotations

import asyncio
import struct
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

import anyio

from bus import DeadLetter, Failure, Retry, Settings, discovery
from bus.delivery import Runtime, running
from bus.resources import Resources
from bus.transport.rabbitmq import copies, envelope, records, wire
from bus.transport.rabbitmq.channel import Received
from bus.transport.rabbitmq.records import Entry

from .crew import hostile
from .messages import content_header
from .sending import Sent
from .watching import MOST_BYTES


BUS: Final = str(Path(envelope.__file__).parents[2])
AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS: Final = discovery.named([hostile])
HANDLERS: Final = {handler.name: handler for handler in hostile.handlers}

Step = tuple[str, int, int]
"""A file, a line, and the line after it."""


@dataclass
class Given:
    """A delivery that is only read."""

    arrived: envelope.Arrived
    routed_by: str | None
    suspect = lost = False
    redelivered = 0
    attempt = 1
    first_failed_at = waits_since = None

    @property
    def message(self) -> Any:
        return self.arrived.message


def steps(sent: Sent) -> frozenset[Step]:
    """Return the steps of reading a message, handling it, copying it for every reason, and reading the copies."""
    taken: set[Step] = set()
    last: dict[int, int] = {}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            taken.add((frame.f_code.co_filename, last.get(id(frame), 0), frame.f_lineno))
            last[id(frame)] = frame.f_lineno
        return local

    def calls(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(BUS):
            return None
        last[id(frame)] = 0
        return local

    sys.settrace(calls)
    try:
        asyncio.run(_go(sent))
    finally:
        sys.settrace(None)
    return frozenset(taken)


async def _go(sent: Sent) -> None:
    raw, key = content_header(sent.hostile, sent.body), sent.handler
    arrived = envelope.decode(raw, sent.body, key, ours=False, original=not sent.direct)
    settings = Settings(max_message_bytes=MOST_BYTES, deploy_grace=0.01)
    runtime = Runtime(settings, EVENTS, Resources([], {}), "/hostile", anyio.CapacityLimiter(1))
    delivery: Any = Given(arrived, None if sent.direct else key)
    outcome = await running(HANDLERS[sent.handler], runtime)(delivery)
    failure = outcome.failure if isinstance(outcome, Retry | DeadLetter) else FAILURE
    message = arrived.message
    flags, properties = copies.retry(raw, message, arrived.routing_key, Retry(timedelta(), failure, 2), {})
    envelope.decode(header(flags, properties, sent.body), sent.body, f"300.hostile.{key}", ours=True)
    flags, properties, body = copies.dead_letter(raw, sent.body, message, arrived.routing_key, failure)
    again = header(flags, properties, body)
    headers = wire.properties(again).get("headers", {}) | {"x-stream-offset": 0}
    received: Any = Received(None, b"", again, body)  # type: ignore[arg-type]
    entry = Entry(0, 0, headers, received, f"hostile.{key}", direct=True)
    records.read(entry, "hostile", "")
    original, _ = entry.original
    copies.replay(original, entry.told, "t")


def header(flags: int, properties: bytes, body: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, len(body), flags) + properties


FAILURE: Final = Failure(
    service="hostile",
    handler="fine",
    reason="exhausted",
    error_type="ValueError",
    error="no",
    traceback="Traceback",
    attempts=1,
    first_failed_at=AT,
    last_failed_at=AT,
    worker="here:1",
)
