"""Which delivery tags of a channel are done, and how to tell the broker in the fewest frames."""

from __future__ import annotations


class Acks:
    """Collects finished tags: an unbroken row from the lowest becomes one `multiple`, the rest single ones.

    A `multiple` never covers a tag that is still running, and always names a tag that was not acked singly.
    """

    __slots__ = ("_done", "_lowest", "_single")

    def __init__(self) -> None:
        self._lowest = 1
        self._done: set[int] = set()
        self._single: set[int] = set()

    def finished(self, tag: int) -> None:
        """Note a tag that is to be acked."""
        self._done.add(tag)

    def given_back(self, tag: int) -> None:
        """Note a tag that the broker was told of by a frame of its own."""
        self._single.add(tag)

    def __len__(self) -> int:
        """Return how many tags are done in all."""
        return self._lowest - 1 + len(self._done) + len(self._single)

    def take(self) -> list[tuple[int, bool]]:
        """Return the acks to send now, as (tag, multiple), and forget them."""
        done, single = self._done, self._single
        if not done:
            return []
        lowest, top, row = self._lowest, 0, 0
        while True:
            if lowest in done:
                done.remove(lowest)
                top = lowest
                row += 1
            elif lowest in single:
                single.remove(lowest)
            else:
                break
            lowest += 1
        self._lowest = lowest
        frames = [(top, row > 1)] if row else []
        if done:
            frames += [(tag, False) for tag in sorted(done)]
            single |= done
            done.clear()
        return frames
