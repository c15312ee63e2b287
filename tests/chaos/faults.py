"""The schedule of faults: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True)
class Planned:
    """A fault to inject: `pick` chooses its victim, `lasts` are its seconds, and so many seconds of `calm` follow."""

    kind: str
    pick: int
    lasts: float
    calm: float


LASTING: Final = {
    "worker killed": (0.0, 0.0),
    "worker stopped": (0.0, 0.0),
    "broker killed": (0.0, 0.0),
    "broker killed, down for long": (15.0, 20.0),
    "broker restarted": (0.0, 0.0),
    "connections reset": (0.0, 0.0),
    "connections refused": (3.0, 12.0),
    "link swallows what goes up": (2.0, 15.0),
    "link swallows what comes down": (2.0, 15.0),
    "link swallows all": (2.0, 15.0),
    "connections forgotten": (0.0, 0.0),
    "memory alarm": (3.0, 12.0),
    "queue deleted": (0.0, 0.0),
    "consumers cancelled": (0.0, 0.0),
    "channels dead": (0.0, 0.0),
}
"""The faults of one broker, and the seconds that each lasts at least and at most."""
OF_A_CLUSTER: Final = {
    "node killed": (2.0, 10.0),
    "leader killed": (2.0, 10.0),
    "node restarted": (0.0, 2.0),
}
"""What takes the place of the broker's faults on three nodes."""
QUICK: Final = (
    "worker killed",
    "worker stopped",
    "broker killed",
    "connections reset",
    "link swallows what comes down",
    "consumers cancelled",
)


def schedule(seed: int, *, cluster: bool = False) -> Iterator[Planned]:
    """Yield faults without end; each kind comes once before any comes again."""
    random = Random(seed)
    kinds = {kind: lasts for kind, lasts in LASTING.items() if not (cluster and kind.startswith("broker"))}
    kinds |= OF_A_CLUSTER if cluster else {}
    while True:
        for kind in random.sample(sorted(kinds), len(kinds)):
            yield Planned(kind, random.randrange(1 << 16), random.uniform(*kinds[kind]), random.uniform(3, 6))


def quick(seed: int) -> list[Planned]:
    """Return one each of the quick faults."""
    random = Random(seed)
    chosen = random.sample(QUICK, len(QUICK))
    return [Planned(kind, random.randrange(1 << 16), 1.0 * kind.startswith("link"), 0.0) for kind in chosen]
