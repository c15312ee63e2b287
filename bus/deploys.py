"""Rolling deploys (F9): versions of a service run side by side, on the same queues.

What this worker cannot read, or did not ask for, may be meant for a worker of another version: for the deploy grace it
goes back every ten seconds, so that such a worker can take it. Only then it is given up. Where nobody could read it,
that is a dead letter. Where it came by a binding that nobody here asked for, which an earlier version left, that is
an ack: whoever subscribes to less wants less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from . import clock, service
from .errors import TidegateError, Undecodable, UnknownType, UnknownVersion
from .failure import dead, failure
from .logs import logger
from .outcome import Ack, Outcome, Reason, Retry
from .service import Handler
from .topic import matches_any
from .transport import Delivery


MOST_KEYS: Final = 1_000
"""Routing keys of one handler whose verdict is remembered, and that are told of in the log."""


class Unasked(TidegateError):
    """A message came by a binding that this version of the handler does not make."""


def unreadable(handler: Handler, delivery: Delivery, error: Undecodable, grace: float) -> Outcome:
    """Return what a body that cannot be decoded comes to: at once a dead letter, unless a deploy may explain it."""
    if not isinstance(error, UnknownType | UnknownVersion):
        if delivery.message.problems:
            # what was wrong with its headers may be why
            error = Undecodable(str(error), delivery.message.problems)
        return dead(handler, delivery, "undecodable", error, runs=0)
    if (wait := waiting(handler, delivery, error, grace)) is not None:
        return wait
    reason: Reason = "unknown-type" if isinstance(error, UnknownType) else "unknown-version"
    return dead(handler, delivery, reason, error, runs=0)


def waiting(handler: Handler, delivery: Delivery, error: TidegateError, grace: float) -> Outcome | None:
    """Return the wait for a worker of another version, which costs no attempt; None after `grace` seconds of it."""
    now = clock.now()
    since = delivery.waits_since or now
    if (now - since).total_seconds() >= grace:
        return None
    return Retry(service.DEPLOY_STEP, failure(handler, delivery, "failed", error, runs=0), delivery.attempt, since)


def stale(handler: Handler, patterns: tuple[str, ...], grace: float) -> Callable[[Delivery], Outcome | None]:
    """Return how a delivery is judged that came by a binding which the handler does not make; None for all others.

    Only what the topic exchange routed here is judged, never what was sent to this queue alone; nor anything of a
    handler that reads foreign queues, as nobody knows by what those are bound.
    """
    if handler.queues:
        return lambda _: None
    asked = lru_cache(MOST_KEYS)(lambda key: matches_any(patterns, key))
    told: set[str] = set()

    def judge(delivery: Delivery) -> Outcome | None:
        # a type that was asked for is handled however it came: one look-up for nearly every delivery
        if asked(delivery.message.type) or (key := delivery.routed_by) is None or asked(key):
            return None
        error = Unasked(f"{key!r} matches nothing that {handler.subscription_name} subscribes to in this version")
        if (wait := waiting(handler, delivery, error, grace)) is not None:
            return wait
        handler.flow.counts["stale"] += 1
        if key not in told and len(told) < MOST_KEYS:
            told.add(key)
            logger().warning(
                "stale binding",
                service=handler.service,
                handler=handler.name,
                routing_key=key,
                subscribed=patterns,
                remedy=f"an earlier version bound queue {handler.subscription_name!r} to it: remove that binding",
            )
        return Ack(ran=False)

    return judge
