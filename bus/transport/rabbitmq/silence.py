"""Whether a broker tells the fate of anything that is published, looked at from time to time."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import Fate
from .channel import Batch


class Silence:
    """Counts the looks in a row between which the broker told nothing, though somebody waited."""

    def __init__(self) -> None:
        self._sent: dict[int, tuple[Batch, int]] = {}

    def look(self, sent: Sequence[Batch], looks: int) -> int:
        """Return how many looks it is silent for now, given how many it was; `sent` is what was published of late."""
        before, self._sent = self._sent, {id(batch): (batch, _told(batch)) for batch in sent}
        told = any(_told(batch) > known for batch, known in before.values())
        told = told or any(known for key, (_, known) in self._sent.items() if key not in before)
        waited = any(known < len(batch.fates) for batch, known in before.values())
        return looks + 1 if waited and not told else 0


def _told(batch: Batch) -> int:
    # what is over without a fate has its time behind it, which tells nothing of the broker
    return len(batch.fates) - batch.fates.count(Fate.UNKNOWN)
