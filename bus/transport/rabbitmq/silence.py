"""Whether a broker tells the fate of anything that is published, looked at from time to time."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import Fate
from .channel import Batch


class Silence:
    """Counts the looks in a row between which the broker told nothing, though somebody waited."""

    def __init__(self) -> None:
        self._waited: list[Batch] = []
        self._sent: list[Batch] = []

    def look(self, sent: Sequence[Batch], looks: int) -> int:
        """Return how many looks it is silent for now, given how many it was; `sent` is what was published of late."""
        known = {id(batch) for batch in self._sent}
        fresh = [batch for batch in sent if id(batch) not in known]
        told = any(map(_told, self._waited)) or any(map(_told, fresh))
        silent = looks + 1 if self._waited and not told else 0
        self._sent, self._waited = list(sent), [batch for batch in sent if not _told(batch)]
        return silent


def _told(batch: Batch) -> bool:
    # what is over without a fate has its time behind it, which tells nothing of the broker
    return batch.future.done() and any(fate is not Fate.UNKNOWN for fate in batch.fates)
