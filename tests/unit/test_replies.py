"""Replies: who waits, what is taken for a reply, and what is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus import BusUnavailable, Event, RequestFailed
from bus.message import Message, wrap
from bus.replies import Failed, Replies


class Asked(Event, type="quote.asked"):
    pass


class Quoted(Event, type="quote.given"):
    pass


REQUEST = replace(wrap(Asked(), id="r", source="/test", limit=1000), wants="quote.given")


def reply(event: Event, cause: Message = REQUEST) -> Message:
    return wrap(event, id="a", source="/test", limit=1000, cause=cause)


def failed() -> Failed:
    return Failed(handler="quotes.quote", reason="rejected", error_type="Reject", error="no")


async def test_the_first_reply_counts_and_others_are_dropped() -> None:
    replies = Replies()
    with replies.expected(REQUEST) as expected:
        first = reply(Quoted())
        replies.arrived(first)
        replies.arrived(reply(Quoted()))
        replies.arrived(reply(failed()))
        assert await expected is first
        assert replies.dropped == 2
    assert len(replies) == 0


async def test_other_types_other_requests_and_what_is_broken_are_dropped() -> None:
    replies = Replies()
    with replies.expected(REQUEST) as expected:
        replies.arrived(reply(Asked()))
        replies.arrived(reply(Quoted(), replace(REQUEST, correlation_id="another")))
        replies.arrived(replace(reply(Quoted()), correlation_id=None))
        replies.arrived(replace(reply(failed()), body=b'{"handler": 1}'))
        replies.arrived(replace(reply(failed()), body=b"\xff"))
        assert not expected.done()
        assert replies.dropped == 5


async def test_a_reply_without_a_type_is_taken_for_what_is_waited_for() -> None:
    replies = Replies()
    with replies.expected(REQUEST) as expected:
        plain = replace(reply(Quoted()), type="", version=None)
        replies.arrived(plain)
        assert await expected is plain


async def test_a_failure_is_raised_with_what_it_tells() -> None:
    replies = Replies()
    with replies.expected(REQUEST) as expected:
        replies.arrived(reply(failed()))
        with pytest.raises(RequestFailed) as raised:
            await expected
    assert (raised.value.handler, raised.value.reason, raised.value.error) == ("quotes.quote", "rejected", "no")


async def test_what_waits_when_the_connection_is_lost_fails_and_what_was_answered_does_not() -> None:
    replies, second = Replies(), replace(REQUEST, id="s", correlation_id="s")
    with replies.expected(REQUEST) as answered, replies.expected(second) as waiting:
        replies.arrived(reply(Quoted()))
        replies.lost("cut")
        assert (await answered).type == "quote.given"
        with pytest.raises(BusUnavailable, match=r"gone \(cut\); the request may be handled yet \(s stored\)"):
            await waiting


async def test_the_first_dropped_reply_is_told_of_and_later_ones_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    replies = Replies()
    caplog.set_level("INFO")
    for _ in range(3):
        replies.arrived(reply(Quoted()))
    assert replies.dropped == 3
    assert caplog.text.count("a reply was dropped") == 1
