"""The corpus and more hostile messages through a worker and a real broker; `python -m tests.hostile` sends more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import corpus
from tests.hostile.run import HANDLED, REASONS, check, check_log, opened, replayed, settled
from tests.hostile.sending import EACH, HANDLERS, addressed, messages, publish
from tests.hostile.watching import crew


AMOUNT = 1_500
SEED = 2026
BY_LUCK = {"hops", "broker"}
"""Verdicts that forged headers do not bring about, or only together with others that say why the broker let it die."""


@pytest.mark.timeout(180)
async def test_f4_every_hostile_message_is_handled_or_a_dead_letter_and_nobody_notices(
    vhost: str, tmp_path: Path
) -> None:
    known = corpus.corpus()
    again = list(corpus.addressed(known, AMOUNT))
    sent = addressed(messages(AMOUNT // EACH, SEED), AMOUNT, SEED) + again
    with crew(vhost, tmp_path) as running:
        await running.started()
        async with opened(vhost) as ledger:
            await publish(vhost, sent)
            found = await settled(ledger, running, sent)
            verdicts = check(sent, running.read(), found)
            assert await replayed(ledger, running, found, 20) == 20
        running.stop()
        told = check_log(running)
        assert told["ack"] + told["dead letter"] >= len(sent) - told["dead letter"]
    for message, each in zip(known, again, strict=True):
        assert verdicts[each.token] in message["verdicts"], message["about"]


def test_the_corpus_has_every_verdict_of_every_handler() -> None:
    had = {(message["handler"], message["verdict"]) for message in corpus.corpus()}
    for handler in HANDLERS:
        wanted = REASONS[handler] - BY_LUCK | ({HANDLED} if handler not in ("raises", "rejects") else set())
        assert {verdict for whose, verdict in had if whose == handler} >= wanted, handler
