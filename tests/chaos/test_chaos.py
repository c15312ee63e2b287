"""A short attack: one each of the quick faults. `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .faults import QUICK, quick
from .harness import attack


@pytest.mark.timeout(240)
async def test_what_was_confirmed_survives_one_each_of_the_quick_faults(tmp_path: Path) -> None:
    told: list[str] = []
    result = await attack(quick(1), 200, tmp_path, told.append, workers=2, publishers=1, within=90)
    assert result["broken"] == {}, told
    assert set(result["faults"]) >= set(QUICK)
    assert result["totals"]["dead_lettered"] > 0
    assert result["totals"]["effects"] > result["totals"]["confirmed"] > 0
