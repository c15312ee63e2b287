"""The corpus of hostile messages, sent again: each comes to what it came to when it was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.corpus import addressed, corpus
from tests.hostile.run import HANDLED, REASONS, check, check_log, opened, settled
from tests.hostile.sending import HANDLERS, publish
from tests.hostile.watching import crew


@pytest.mark.timeout(120)
async def test_f4_every_message_of_the_corpus_comes_to_what_it_came_to_before(vhost: str, tmp_path: Path) -> None:
    messages = corpus()
    sent = list(addressed(messages))
    with crew(vhost, tmp_path) as running:
        await running.started()
        async with opened(vhost) as ledger:
            await publish(vhost, sent)
            found = await settled(ledger, running, sent)
            verdicts = check(sent, running.read(), found)
        running.stop()
        check_log(running)
    wrong = {
        message["about"]: verdicts[each.token]
        for message, each in zip(messages, sent, strict=True)
        if verdicts[each.token] not in message["verdicts"]
    }
    assert wrong == {}


def test_the_corpus_has_every_verdict_of_every_handler() -> None:
    had = {(message["handler"], message["verdict"]) for message in corpus()}
    for handler in HANDLERS:
        wanted = REASONS[handler] - BY_LUCK | ({HANDLED} if handler not in ("raises", "rejects") else set())
        assert {verdict for whose, verdict in had if whose == handler} >= wanted, handler


BY_LUCK = {"hops", "broker"}
"""Verdicts that forged headers do not bring about, or only together with others that say why the broker let it die."""
