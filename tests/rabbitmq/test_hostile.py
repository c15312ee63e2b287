"""Two thousand hostile messages through a worker and a real broker; `python -m tests.hostile` sends twenty thousand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.hostile.run import EACH, addressed, check, check_log, crew, messages, opened, publish, replayed, settled


AMOUNT = 2_000


@pytest.mark.timeout(180)
async def test_f4_every_hostile_message_is_handled_or_a_dead_letter_and_nobody_notices(
    vhost: str, tmp_path: Path
) -> None:
    seeded = random.randrange(1 << 32)
    print(f"the messages are those of seed {seeded}: python -m tests.hostile {AMOUNT} {seeded}")
    sent = addressed(messages(AMOUNT // EACH, seeded), AMOUNT, seeded)
    with crew(vhost, tmp_path) as running:
        await running.started()
        async with opened(vhost) as transport:
            await publish(vhost, sent)
            found = await settled(transport, running, sent)
            check(sent, running.read(), found)
            assert await replayed(transport, running, found, 20) == 20
        running.stop()
        check_log(running, AMOUNT)
