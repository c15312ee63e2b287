"""Chooses the least messages that go every way: each step through the code, and each verdict of each handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import corpus
from .paths import steps
from .sending import Sent


@dataclass
class Chosen:
    """What was offered and went a way that nothing before it did."""

    ways: dict[int, frozenset[Any]] = field(default_factory=dict)
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    known: set[Any] = field(default_factory=set)
    offered: int = 0

    async def offer(self, sent: Sent, verdict: str) -> None:
        """Keep the message if it goes a new way."""
        self.offered += 1
        # in a thread of its own: what else this process does is no way of the message
        ways = frozenset({*await asyncio.to_thread(steps, sent), (sent.handler, verdict)})
        if ways <= self.known:
            return
        self.known |= ways
        self.ways[sent.token] = ways
        about = (
            f"{len(sent.hostile.headers)} headers, {len(sent.hostile.properties)} bytes of properties: {sent.hostile}"
        )
        self.kept[sent.token] = corpus.kept(sent, sent.hostile.body, verdict, about[:400])

    def least(self) -> list[int]:
        """Return few of them that go every way of all: again and again the one with the most that is left."""
        left, chosen = set(self.known), []
        while left:
            best = max(
                self.ways, key=lambda token: (len(self.ways[token] & left), -len(self.kept[token]["properties"]))
            )
            chosen.append(best)
            left -= self.ways[best]
        return chosen

    def write(self, folder: Path) -> int:
        """Write the least of them, and return how many files there are then."""
        for token in self.least():
            corpus.write(folder, self.kept[token])
        return len(list(folder.glob("*.json")))
