"""Answers: what of a delivery's outcome goes to the requester whose request it was, or comes from."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, get_args, get_origin

from .event import Event
from .message import Message, Outgoing, derived_id, wrap
from .outcome import Ack, DeadLetter, Outcome
from .replies import FAILED, Failed
from .resources import hints_of
from .service import Handler


ANYTHING: Final = (Any, object, tuple, list, Sequence)
"""Annotations that say nothing of the events that are returned."""


def answered(message: Message, published: tuple[Outgoing, ...], returned: int) -> Ack:
    """Return the ack of a message that came with an address for answers; the last `returned` events were returned.

    The answer is the first event of the wanted type; to a stranger, who wants no type, the first that was returned.
    """
    wants = message.wants
    answers = published[len(published) - returned :] if wants is None else published
    fit = (each.message for each in answers if not each.delay and wants in (None, each.message.type))
    return Ack(published, next(fit, None))


def told(handler: Handler, message: Message, outcome: Outcome, source: str) -> Outcome:
    """Return the outcome; a dead letter tells the requester, if it is one of ours and the handler could answer it."""
    if not isinstance(outcome, DeadLetter) or message.wants is None or not could_answer(handler, message.wants):
        return outcome
    name, failure = handler.subscription_name, outcome.failure
    failed = Failed(handler=name, reason=failure.reason, error_type=failure.error_type, error=failure.error)
    id = derived_id(message, name, 0, FAILED)
    reply = wrap(failed, id=id, source=source, limit=sys.maxsize, cause=message)
    return replace(outcome, reply=replace(reply, reply_to=None, wants=None))


def could_answer(handler: Handler, wants: str) -> bool:
    """Tell whether the handler may return an event of the type, by the annotation of what it returns."""
    hints = hints_of(handler.function)
    return "return" not in hints or any(_may_be(each, wants) for each in _leaves(hints["return"]))


def _leaves(annotation: Any) -> Iterator[Any]:
    annotation = getattr(annotation, "__value__", annotation)  # a name that was given to a type
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _may_be(annotation: Any, wants: str) -> bool:
    if (get_origin(annotation) or annotation) in ANYTHING or isinstance(annotation, TypeVar):
        return True
    if not (isinstance(annotation, type) and issubclass(annotation, Event)):
        return False
    # what it returns was imported, so that its class knows it
    return annotation.__schema__.type == wants or any(_may_be(cls, wants) for cls in annotation.__subclasses__())
