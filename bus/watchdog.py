"""Watchdog: names what blocks the event loop, while it does.

The loop beats by a timer of its own. A thread looks for the beat, and where it is late, at the task that runs and at
the line of code where it is. Nothing is done for each delivery.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from . import clock
from .logs import logger
from .metrics import Metric
from .places import INSTALLED, OURS, PYTHONS


THRESHOLD: Final = 1.0
"""Seconds that the loop may stand before that is told: what users notice, and far above what a busy machine causes."""
BEATS: Final = 4
"""Beats, and looks for them, in the time of the threshold."""
RARELY: Final = 60.0
"""Seconds between two lines of a block that goes on: twice as long each time, but no longer than this."""
STOPPED: Final = 0.02
"""Share of a processor that is less than what code takes that lets no thread run, on a machine however busy."""
HANDLING: Final[ContextVar[str]] = ContextVar("tidegate_handling", default="")
"""The subscription whose delivery runs: tasks that a handler starts inherit it."""
TOLD: Final = (
    "everything in this process waits for it: await what takes long, hand it to asyncio.to_thread, or make the handler "
    "a plain function, which runs in a thread"
)


@dataclass(frozen=True, slots=True)
class Culprit:
    """Who holds the loop: "" where that cannot be told; `at` is the innermost line of the user's code."""

    service: str = ""
    handler: str = ""
    id: str = ""
    at: str = ""

    def fields(self) -> dict[str, Any]:
        """Return what is known of it, for a log line."""
        known = {"service": self.service, "handler": self.handler, "id": self.id, "at": self.at}
        return {name: value for name, value in known.items() if value}


class Watchdog:
    """What is known of one loop: who blocks it now and for how long, and who blocked it for how long in all.

    `who` is asked only when a beat is late. It may be read in any thread.
    """

    def __init__(self, who: Callable[[], Culprit], now: float, threshold: float = THRESHOLD) -> None:
        self.interval = threshold / BEATS
        self._who = who
        self._found: tuple[Culprit, float] | None = None
        self._threshold = threshold
        self._totals: dict[tuple[str, str], float] = {}
        self._beaten = self._last_beat = self._looked = now
        self._cpu = 0.0
        self._still = 0.0
        self._counted = 0.0
        self._next = threshold
        self._log = logger()

    @property
    def blocked(self) -> tuple[Culprit, float] | None:
        """Who holds the loop, and for how many seconds that was seen; None while it goes round."""
        return self._found if self._beaten == self._last_beat else None

    def beat(self, now: float) -> None:
        """Note that the loop runs; on the loop."""
        self._beaten = now

    def look(self, now: float, cpu: float) -> None:
        """Look for the beat, at this time, when the process has used `cpu` seconds of processors; in the thread."""
        beaten, still = self._beaten, self._stood_still(now, cpu)
        self._still += still
        if beaten != self._last_beat:
            self._goes_on(beaten - self._last_beat - self.interval - self._still)
            # it may have been before this beat or after it
            self._last_beat, self._still = beaten, still
        late = now - beaten - self.interval - self._still
        if late >= self._threshold:
            self._blocks(late)

    def metrics(self) -> list[Metric]:
        """Return the seconds that each handler has blocked the loop, in all and now."""
        now = self.blocked
        held = {} if now is None else {(now[0].service, now[0].handler): now[1]}
        totals = {**dict.fromkeys(held, 0.0), **self._totals}
        labels = {who: {"service": who[0], "handler": who[1]} for who in sorted(totals)}
        return [
            Metric(
                "tidegate_loop_blocked_seconds_total",
                "counter",
                f"Seconds that a handler has blocked the event loop, {self._threshold:g} or more at once.",
                [(labels[who], totals[who]) for who in labels],
            ),
            Metric(
                "tidegate_loop_blocked_seconds",
                "gauge",
                "Seconds for which a handler blocks the event loop right now.",
                [(labels[who], held.get(who, 0.0)) for who in labels],
            ),
        ]

    def _stood_still(self, now: float, cpu: float) -> float:
        """Return for how many seconds since the last look the process was stopped, or the machine slept.

        Then this thread did not run either, and nothing else did.
        """
        unseen, busy = now - self._looked - self.interval, cpu - self._cpu - self.interval
        self._looked, self._cpu = now, cpu
        return unseen if unseen > self.interval and busy < unseen * STOPPED else 0.0

    def _blocks(self, late: float) -> None:
        culprit = self._who()
        self._found = culprit, late
        self._count(culprit, late)
        if late >= self._next:
            self._next = late + min(late, RARELY)
            self._log.warning("event loop blocked", **culprit.fields(), blocked=round(late, 2), told=TOLD)

    def _goes_on(self, blocked: float) -> None:
        if self._found is None and blocked < self._threshold:
            return
        # of C code that let no thread run, its end may be all that is seen
        culprit = self._found[0] if self._found is not None else Culprit()
        self._count(culprit, blocked)
        self._found, self._counted, self._next = None, 0.0, self._threshold
        self._log.warning("event loop goes on", **culprit.fields(), blocked=round(blocked, 2))

    def _count(self, culprit: Culprit, late: float) -> None:
        """Count what went by since it was counted last for who holds the loop now: one may follow the other."""
        who = culprit.service, culprit.handler
        self._totals[who] = self._totals.get(who, 0.0) + max(late - self._counted, 0.0)
        self._counted = max(late, self._counted)


@contextmanager
def watching(names: Container[str], threshold: float = THRESHOLD) -> Iterator[Watchdog]:
    """Watch the running loop meanwhile; `names` are the subscriptions that are hosted here."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    watchdog = Watchdog(lambda: culprit(loop, thread, names), clock.monotonic(), threshold)
    ended = threading.Event()
    timer: asyncio.TimerHandle | None = None

    def beat() -> None:
        nonlocal timer
        watchdog.beat(clock.monotonic())
        timer = loop.call_later(watchdog.interval, beat)

    def work() -> None:
        # a signal that came to this thread would not wake the main one from what blocks it
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not ended.wait(watchdog.interval):
            watchdog.look(clock.monotonic(), clock.processor())

    beat()
    looking = threading.Thread(target=work, name="watchdog", daemon=True)
    looking.start()
    try:
        yield watchdog
    finally:
        if timer is not None:
            timer.cancel()
        ended.set()
        looking.join()


def culprit(loop: asyncio.AbstractEventLoop, thread: int, names: Container[str]) -> Culprit:
    """Return who holds the loop that runs in a thread, asked from another one."""
    task = asyncio.current_task(loop)
    frames = list(_outwards(sys._current_frames().get(thread)))
    service, _, handler = _subscription(task, names).partition(".")
    message = next(filter(None, map(_message_id, frames)), "")
    return Culprit(service, handler, message, _place(frames))


def _subscription(task: asyncio.Task[Any] | None, names: Container[str]) -> str:
    if task is None:
        return ""
    if sys.version_info >= (3, 12) and (inherited := task.get_context().get(HANDLING)):
        return inherited
    return name if (name := task.get_name()) in names else ""


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _message_id(frame: FrameType) -> str:
    """Return the id of the message that a frame of ours has the delivery of."""
    if not frame.f_code.co_filename.startswith(OURS) or "delivery" not in frame.f_code.co_varnames:
        return ""
    message = getattr(frame.f_locals.get("delivery"), "message", None)
    return str(getattr(message, "id", ""))


def _place(frames: list[FrameType]) -> str:
    """Return the innermost line of the user's code; where none is, of what is installed, and not ours."""
    own, installed = [], []
    for frame in frames:
        file = frame.f_code.co_filename
        if file.startswith(INSTALLED) and not file.startswith(OURS):
            installed.append(frame)
        elif not file.startswith((OURS, *PYTHONS)):
            own.append(frame)
    for frame in own or installed or frames:
        return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
    return ""
