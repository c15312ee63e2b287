"""Two thousand hostile messages through a worker and a real broker; `python -m tests.hostile` sends more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.hostile.run import check, check_log, opened, replayed, settled
from tests.hostile.sending import EACH, addressed, messages, publish
from tests.hostile.watching import crew


AMOUNT = 2_000


@pytest.mark.timeout(180)
async def test_f4_every_hostile_message_is_handled_or_a_dead_letter_and_nobody_notices(
    vhost: str, tmp_path: Path
) -> None:
    seeded = random.randrange(1 << 32)
    print(f"the messages are those of seed {seeded}")
    sent = addressed(messages(AMOUNT // EACH, seeded), AMOUNT, seeded)
    with crew(vhost, tmp_path) as running:
        await running.started()
        async with opened(vhost) as ledger:
            await publish(vhost, sent)
            found = await settled(ledger, running, sent)
            check(sent, running.read(), found)
            assert await replayed(ledger, running, found, 20) == 20
        running.stop()
        told = check_log(running)
        assert told["ack"] + told["dead letter"] >= AMOUNT - told["dead letter"]
