"""The reconciliation, on ledgers in which something is planted."""

from __future__ import annotations

import pytest

from .book import ANSWERS_WITHIN, ANY, BACK_WITHIN, STRAGGLING, destroyed
from .reconcile import reconcile
from .story import Story


@pytest.fixture
def story() -> Story:
    return Story()


def test_what_was_confirmed_and_handled_is_all_right(story: Story) -> None:
    story.published("p.a.1", "chaos.task")
    story.handled("p.a.1", "steady.work")
    story.handled("p.a.1", "audit.see")
    story.handled("p.a.1", "once.work")
    assert not story.verdict().broken
    assert story.book.open == set()


def test_what_one_of_two_handlers_never_got_is_lost(story: Story) -> None:
    story.published("p.a.1", "chaos.task")
    story.handled("p.a.1", "steady.work")
    story.handled("p.a.1", "once.work")
    assert story.verdict().lost == [("audit.see", "p.a.1")]
    assert story.verdict().broken


def test_a_follow_up_that_was_never_handled_is_lost(story: Story) -> None:
    story.published("p.a.1", "chaos.order")
    story.handled("p.a.1", "chain.take")
    assert story.verdict().lost == [("chain.finish", "p.a.1")]


def test_a_follow_up_is_lost_also_where_nobody_knows_whether_its_order_was_stored(story: Story) -> None:
    for ref in ("p.a.1", "p.a.2"):
        story.publishing(ref, "chaos.order")
        story.tell("unsure", "publisher0/1", ref=ref, error="BusUnavailable")
    story.handled("p.a.1", "chain.take")
    assert story.verdict().lost == [("chain.finish", "p.a.1")]
    story.handled("p.a.1", "chain.finish")
    assert not story.verdict().broken


def test_a_run_that_only_started_is_no_effect(story: Story) -> None:
    story.published("p.a.1")
    story.started("p.a.1")
    assert story.verdict().lost == [("later.work", "p.a.1")]


@pytest.mark.parametrize("handler", ["later.work", ANY])
def test_what_is_still_in_a_queue_is_stuck_and_not_lost(story: Story, handler: str) -> None:
    story.published("p.a.1")
    verdict = story.verdict(left={(handler, "p.a.1")})
    assert (verdict.lost, verdict.stuck) == ([], [("later.work", "p.a.1")])
    assert verdict.broken


def test_what_was_never_confirmed_may_arrive_or_not(story: Story) -> None:
    for ref in ("p.a.1", "p.a.2"):
        story.publishing(ref)
        story.tell("unsure", "publisher0/1", ref=ref, error="BusUnavailable")
    story.handled("p.a.1")
    verdict = story.verdict()
    assert (verdict.unsure, verdict.arrived, verdict.broken) == (2, 1, False)


def test_the_doomed_must_be_among_the_dead_letters_and_nothing_else_may(story: Story) -> None:
    story.published("p.a.1", "chaos.doomed")
    story.published("p.a.2", "chaos.doomed")
    story.published("p.a.3")
    verdict = story.verdict(("doomed.work", "p.a.1"), ("later.work", "p.a.3"))
    assert verdict.lost == [("doomed.work", "p.a.2")]
    assert (verdict.dead_lettered, verdict.given_up) == (1, [("later.work", "p.a.3")])


def test_a_second_run_is_blamed_on_the_fault_before_it_and_on_who_sent_it_again(story: Story) -> None:
    story.published("p.a.1")
    story.handled("p.a.1")
    story.fault("worker killed")
    story.handled("p.a.1", redelivered=1)
    story.fault("broker killed")
    story.handled("p.a.1")
    verdict = story.verdict()
    assert verdict.effects == 3
    assert verdict.given_again == {"worker killed": 1}
    assert verdict.second_copy == {"broker killed": 1}
    assert not verdict.broken


def test_two_copies_of_a_message_may_run_at_once(story: Story) -> None:
    story.published("p.a.1")
    first, second = story.started("p.a.1", redelivered=1), story.started("p.a.1")
    for run in (second, first):
        story.tell("finished", "worker0/1", run=run, handler="later.work", ref="p.a.1")
    assert [run.redelivered for run in story.book.runs["later.work", "p.a.1"]] == [0, 1]


def test_what_a_store_has_twice_is_told_and_what_it_has_not_is_lost(story: Story) -> None:
    for ref in ("p.a.1", "p.a.2", "p.a.3"):
        story.published(ref, "chaos.task")
        for handler in ("steady.work", "audit.see", "once.work"):
            story.handled(ref, handler)
    runs = {work: [run.name for run in runs] for work, runs in story.book.runs.items()}
    once = {("once.work", ref): runs["once.work", ref] for ref in ("p.a.1", "p.a.2")}
    once["once.work", "p.a.2"] *= 2
    verdict = story.verdict(once=once)
    assert verdict.effect_twice == [("once.work", "p.a.2")]
    assert verdict.lost == [("once.work", "p.a.3")]


def test_an_idempotent_run_that_has_an_effect_after_the_commit_of_another_breaks_the_run(story: Story) -> None:
    story.published("p.a.1", "chaos.task")
    for handler in ("steady.work", "audit.see", "once.work", "once.work"):
        story.handled("p.a.1", handler)
    undone, committed = (run.name for run in story.book.runs["once.work", "p.a.1"])
    assert not story.verdict(once={("once.work", "p.a.1"): [committed]}).broken
    verdict = story.verdict(once={("once.work", "p.a.1"): [undone]})
    assert verdict.run_after_commit == [("once.work", "p.a.1")]
    assert verdict.broken


def test_a_first_success_before_that_of_an_earlier_event_is_disorder(story: Story) -> None:
    for number in (1, 2, 3):
        story.published(f"p.a.{number}", "chaos.entry", number=number)
    for number in (1, 3, 2):
        story.handled(f"p.a.{number}", "account.apply")
    assert story.verdict().disorder == ["p.a.3 before p.a.2"]
    assert story.verdict().broken


def test_a_second_success_and_another_stream_are_no_disorder(story: Story) -> None:
    for number in (1, 2):
        story.published(f"p.a.{number}", "chaos.entry", number=number)
    story.published("p.b.1", "chaos.entry", stream="b")
    for ref in ("p.a.1", "p.a.2", "p.b.1", "p.a.1"):
        story.handled(ref, "account.apply")
    assert story.verdict().disorder == []


def test_what_went_with_a_deleted_queue_is_told_apart_and_ends_when_the_queue_is_back(story: Story) -> None:
    story.published("p.a.1")
    story.published("p.a.2")
    story.handled("p.a.2")
    story.tell("fault", kind="queue deleted", deleted="later.work")
    story.published("p.a.6")  # it was still there
    story.handled("p.a.6")
    story.tell("healed")
    story.published("p.a.3")  # the queue was not there yet
    story.published("p.a.4")
    story.published("p.a.5")
    story.handled("p.a.4")
    verdict = story.verdict()
    assert verdict.destroyed == [("later.work", "p.a.1"), ("later.work", "p.a.3")]
    assert verdict.lost == [("later.work", "p.a.5")]
    assert set(destroyed(story.book)) == set(verdict.destroyed)


def test_what_was_due_before_a_deleted_queue_was_there_again_went_with_it_though_published_later(story: Story) -> None:
    story.fault("queue deleted", deleted="later.work")
    story.published("p.a.1", delay=60)
    story.published("p.a.2", delay=1)
    story.now += 60
    story.handled("p.a.1")
    story.published("p.a.3", delay=1)
    verdict = story.verdict()
    assert verdict.destroyed == [("later.work", "p.a.2")]
    assert verdict.lost == [("later.work", "p.a.3")]


def test_a_deleted_queue_excuses_neither_others_nor_what_was_lost_before_what_was_handled_last(story: Story) -> None:
    story.published("p.a.1")
    story.published("p.a.2", "chaos.flaky")
    story.now += STRAGGLING
    story.published("p.a.3")
    story.handled("p.a.3")
    story.fault("queue deleted", deleted="later.work")
    assert story.verdict().lost == [("later.work", "p.a.1"), ("flaky.work", "p.a.2")]


def test_a_deleted_queue_takes_all_of_a_backlog_and_what_waited_for_a_retry_with_it(story: Story) -> None:
    story.published("p.a.1")
    story.published("p.a.2")
    story.handled("p.a.2")  # while the first waits for its retry
    for number in range(3, 100):
        story.published(f"p.a.{number}")
    story.fault("queue deleted", deleted="later.work")
    story.published("p.a.100")
    story.handled("p.a.100")
    verdict = story.verdict()
    assert len(verdict.destroyed) == 98
    assert not verdict.broken


def test_a_deleted_queue_takes_what_a_dead_connection_held_but_nothing_older_than_the_fault_before(
    story: Story,
) -> None:
    story.published("p.a.1")
    story.fault("connections forgotten")
    story.published("p.a.2")
    story.now += 100
    story.published("p.a.3")
    story.handled("p.a.3")
    story.fault("queue deleted", deleted="later.work")
    story.published("p.a.4")
    story.handled("p.a.4")
    verdict = story.verdict()
    assert verdict.lost == [("later.work", "p.a.1")]
    assert verdict.destroyed == [("later.work", "p.a.2")]


def test_a_deleted_queue_excuses_nothing_from_before_the_end_of_the_fault_before(story: Story) -> None:
    story.published("p.a.1")
    story.fault("connections reset")
    story.published("p.a.2")
    story.handled("p.a.2")
    story.fault("queue deleted", deleted="later.work")
    assert story.verdict().lost == [("later.work", "p.a.1")]


def test_a_deleted_queue_that_is_not_declared_again_soon_excuses_nothing_more(story: Story) -> None:
    story.fault("queue deleted", deleted="later.work")
    story.published("p.a.1")
    story.now += BACK_WITHIN
    story.published("p.a.2")
    verdict = story.verdict()
    assert verdict.destroyed == [("later.work", "p.a.1")]
    assert verdict.lost == [("later.work", "p.a.2")]


def test_a_deleted_queue_excuses_a_dead_letter_only_since(story: Story) -> None:
    story.published("p.a.1")
    before, letter = story.now, ("later.work", "p.a.1")
    story.now += STRAGGLING
    story.fault("queue deleted", deleted="later.work")
    assert reconcile(story.book, {letter: before}).given_up == [letter]
    assert reconcile(story.book, {letter: story.now}).given_up == []


def test_an_error_of_a_publish_that_is_not_unavailability_breaks_the_run(story: Story) -> None:
    story.publishing("p.a.1")
    story.tell("unsure", "publisher0/1", ref="p.a.1", error="PublishRefused", told="the queue is full")
    verdict = story.verdict()
    assert verdict.problems == ["the publish of p.a.1 raised PublishRefused: the queue is full"]
    assert (verdict.unsure, verdict.broken) == (0, True)


def test_a_publish_that_never_ends_breaks_the_run(story: Story) -> None:
    story.publishing("p.a.1")
    assert story.verdict().problems == ["the publish of p.a.1 never ended"]


@pytest.mark.parametrize("ended", ["confirmed", "unsure"])
def test_a_publish_that_ends_long_after_its_timeout_breaks_the_run(story: Story, ended: str) -> None:
    story.publishing("p.a.1", "chaos.doomed")
    story.now += ANSWERS_WITHIN
    story.tell(ended, "publisher0/1", ref="p.a.1", error="BusUnavailable")
    assert f"the publish of p.a.1 took {ANSWERS_WITHIN + 1:.0f} s" in story.verdict().problems


def test_each_publish_of_an_event_has_its_own_time(story: Story) -> None:
    story.publishing("p.a.1", "chaos.doomed")
    for _ in range(3):
        story.now += ANSWERS_WITHIN / 2
        story.tell("unsure", "publisher0/1", ref="p.a.1", error="BusUnavailable")
    assert story.verdict().problems == []


def test_what_a_process_did_wrong_breaks_the_run(story: Story) -> None:
    story.tell("problem", told="worker0 ended with 1")
    assert story.verdict().broken
