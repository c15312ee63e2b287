"""A breaker stops a handler that keeps failing, leaves its backlog in the queue, and tries one message now and then."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import Any, Final

from ..clock import Seconds, span
from ..errors import ConfigurationError, Reject
from ..failure import text_of
from ..logs import logger
from ..outcome import Ack, DeadLetter, Outcome, Retry
from ..service import Handler, Middleware, Process
from ..transport import Delivery


HOLD: Final = "breaker"
LONGEST: Final = timedelta(days=1)


def breaker(*, failures: int = 10, within: Seconds = 60, cool_down: Seconds = 30) -> Middleware:
    """Return the middleware that opens a breaker for a handler whose last `failures` runs failed `within` this time.

    A run fails that raises or is timed out; one that succeeds resets the count; what says something of the message
    alone (rejected, undecodable, expired, of an unknown type, completed before) does not count. While it is open, the
    handler takes nothing, and its backlog stays in the queue. After `cool_down` (seconds or a timedelta, always the
    same) one message at a time is tried: a success closes the breaker, a failure starts the cool-down again. Each
    handler has its own, in each worker. Raises ConfigurationError for numbers that cannot be.
    """
    if not isinstance(failures, int) or not 1 <= failures <= 10_000:
        raise ConfigurationError(f"breaker(failures={failures!r}): it takes 1 to 10,000 failures in a row")
    times = {"within": within, "cool_down": cool_down}
    for name, given in times.items():
        if not 0 < _seconds(given) <= LONGEST.total_seconds():
            raise ConfigurationError(f"breaker({name}={given!r}): it must be above 0 and at most a day")

    def wrap(handler: Handler, process: Process) -> Process:
        return Breaker(handler, failures, _seconds(within), _seconds(cool_down)).watching(process)

    return wrap


class Breaker:
    """The breaker of one handler in one worker. It holds the handler's flow: to nothing while it is open, then to one.

    An era ends whenever it opens, tries or closes: what began in an earlier one tells nothing of now.
    """

    def __init__(self, handler: Handler, failures: int, within: float, cool_down: float) -> None:
        self._flow = handler.flow
        self._log = logger().bind(service=handler.service, handler=handler.name)
        self._failed: deque[float] = deque(maxlen=failures)
        self._within = within
        self._cool_down = cool_down
        self._era = 0
        self._probing = False
        self._opened = 0.0

    def watching(self, process: Process) -> Process:
        """Return the process whose outcomes it watches."""

        async def watched(delivery: Delivery) -> Outcome:
            era = self._era
            try:
                outcome = await process(delivery)
            except Reject:
                raise
            except Exception as error:
                if era == self._era:
                    self._note(error_type=type(error).__qualname__, error=text_of(error))
                raise
            if era == self._era:
                if type(outcome) is Ack:
                    if outcome.ran:
                        self._succeeded()
                elif (failure := failed(delivery, outcome)) is not None:
                    self._note(error_type=failure.error_type, error=failure.error)
            return outcome

        return watched

    def _succeeded(self) -> None:
        self._failed.clear()
        if self._probing:
            self._era += 1
            self._probing = False
            self._flow.release(HOLD)
            self._log.info("breaker closed", after=round(_now() - self._opened, 3))

    def _note(self, **why: str) -> None:
        """Count a failure, and open where it is one too many."""
        now, failures = _now(), self._failed
        failures.append(now)
        if self._probing:
            self._open()
        elif len(failures) == failures.maxlen and now - failures[0] <= self._within:
            self._opened = now
            self._log.warning("breaker open", failures=len(failures), cool_down=self._cool_down, **why)
            self._open()

    def _open(self) -> None:
        self._era += 1
        self._probing = False
        self._failed.clear()
        self._flow.hold(HOLD, 0, seconds=self._cool_down, then=self._probe)

    def _probe(self) -> None:
        self._era += 1
        self._probing = True
        self._flow.hold(HOLD, 1)


def failed(delivery: Delivery, outcome: Outcome) -> Any:
    """Return the failure of a run that raised or was timed out; None where the outcome tells nothing of the handler."""
    match outcome:
        case Retry(failure=failure, attempt=attempt) if attempt > delivery.attempt:
            return failure
        case DeadLetter(failure=failure) if failure.reason == "exhausted":
            return failure
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _seconds(given: Seconds) -> float:
    try:
        return span(given).total_seconds()
    except (OverflowError, TypeError, ValueError):
        return 0.0
