"""Answers: what of an outcome goes to the requester."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Optional

import pytest

from bus import Ack, DeadLetter, Event, Handler, Message, Release, Service
from bus.answers import answered, could_answer, told
from bus.event import decode
from bus.failure import failure
from bus.message import Outgoing, wrap
from bus.replies import FAILED, Failed

from .played import Played


class Asked(Event, type="quote.asked"):
    pass


class Offer(Event):
    pass


class Quoted(Offer, type="quote.given"):
    pass


class Special(Quoted, type="quote.special"):
    pass


class Other(Event, type="quote.other"):
    pass


REQUEST = replace(wrap(Asked(), id="r", source="/test", limit=1000), wants="quote.given", reply_to="there")
STRANGER = replace(REQUEST, wants=None)


def handler_returning(annotation: Any) -> Handler:
    service = Service("quotes")

    async def quote(asked: Asked) -> Any: ...

    quote.__annotations__["return"] = annotation
    service.on(Asked)(quote)
    return service.handlers[0]


@pytest.mark.parametrize(
    ("annotation", "could"),
    [
        (Quoted, True),
        (Quoted | None, True),
        (Optional[Quoted], True),  # noqa: UP045
        ("Quoted | Other", True),
        (list[Quoted], True),
        (tuple[Other, ...], False),
        (tuple[Other, Quoted], True),
        (Sequence[Other | Quoted] | None, True),
        (Offer, True),
        (Event, True),
        (Sequence[Event], True),
        (list, True),
        (Any, True),
        (Special, False),
        (Other, False),
        (None, False),
    ],
    ids=str,
)
def test_a_handler_could_answer_what_its_annotation_includes(annotation: Any, could: bool) -> None:
    assert could_answer(handler_returning(annotation), "quote.given") is could


def test_a_handler_that_says_nothing_of_what_it_returns_could_answer() -> None:
    service = Service("quotes")

    async def quote(asked: Asked) -> None: ...

    del quote.__annotations__["return"]
    service.on(Asked)(quote)
    assert could_answer(service.handlers[0], "quote.given")


def going_out(*events: Event, cause: Message = REQUEST) -> tuple[Outgoing, ...]:
    return tuple(Outgoing(wrap(event, id="e", source="/test", limit=1000, cause=cause)) for event in events)


def test_the_answer_is_the_first_event_of_the_wanted_type_however_it_was_published() -> None:
    published = going_out(Other(), Quoted(), Quoted(), Other())
    assert answered(REQUEST, published, 1) == Ack(published, published[1].message)
    assert answered(REQUEST, published[:1], 1).reply is None


def test_a_stranger_gets_what_was_returned_first() -> None:
    published = going_out(Other(), Quoted(), Other(), cause=STRANGER)
    assert answered(STRANGER, published, 2) == Ack(published, published[1].message)
    assert answered(STRANGER, published, 0).reply is None


def test_what_comes_later_is_no_answer() -> None:
    delayed = (replace(going_out(Quoted())[0], delay=timedelta(hours=1)),)
    assert answered(REQUEST, delayed, 1).reply is None


def test_what_a_request_causes_tells_where_its_answer_is_waited_for_up_to_the_answer() -> None:
    other, quoted = (outgoing.message for outgoing in going_out(Other(), Quoted()))
    further = wrap(Asked(), id="f", source="/test", limit=1000, cause=other)
    assert [(m.reply_to, m.wants) for m in (other, further)] == [("there", "quote.given")] * 2
    assert (quoted.reply_to, quoted.wants) == (None, None)


def test_a_strangers_address_is_not_carried_on() -> None:
    [outgoing] = going_out(Other(), cause=STRANGER)
    assert (outgoing.message.reply_to, outgoing.message.wants) == (None, None)


def dead_letter(handler: Handler) -> DeadLetter:
    return DeadLetter(failure(handler, Played(), "rejected", ValueError("no \ud800")))


def test_a_dead_letter_tells_the_requester_why() -> None:
    outcome = told(handler_returning(Quoted), REQUEST, dead_letter(handler_returning(Quoted)), "/quotes")
    assert isinstance(outcome, DeadLetter) and outcome.reply is not None
    assert (outcome.reply.type, outcome.reply.correlation_id, outcome.reply.causation_id) == (FAILED, "r", "r")
    assert (outcome.reply.reply_to, outcome.reply.wants) == (None, None)
    failed = decode(Failed, outcome.reply.body)
    assert (failed.handler, failed.reason, failed.error_type) == ("quotes.quote", "rejected", "ValueError")
    assert failed.error == "no \\ud800"


def test_nothing_is_told_of_a_bystander_to_a_stranger_or_of_anything_else() -> None:
    for annotation, message in ((None, REQUEST), (Other, REQUEST), (Quoted, STRANGER)):
        handler = handler_returning(annotation)
        outcome = dead_letter(handler)
        assert told(handler, message, outcome, "/quotes") is outcome
    assert told(handler_returning(Quoted), REQUEST, Release(), "/quotes") == Release()
