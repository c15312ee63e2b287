"""A ledger that survives the kill of its process: each entry is one line, appended by one write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson


Entry: TypeAlias = dict[str, Any]

WHERE: Final = "CHAOS_LEDGER"
"""The setting that tells a process where its ledger is."""
STORE: Final = "CHAOS_STORE"
"""The setting that tells it where the store of the idempotent handler is."""
EFFECTS: Final = "CREATE TABLE IF NOT EXISTS effects (ref TEXT, run TEXT)"


class Ledger:
    """One file of one process at a time. A machine has one monotonic clock, so entries of all ledgers compare."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.who = f"{path.stem}/{os.getpid()}"

    def write(self, what: str, **more: object) -> Entry:
        """Append an entry and return it."""
        entry: Entry = {"at": time.monotonic(), "what": what, "who": self.who, **more}
        os.write(self._file, orjson.dumps(entry) + b"\n")
        return entry

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def of_this_process() -> Ledger:
    """Return the ledger that whoever started this process wants kept; nowhere, if nobody does."""
    return Ledger(Path(os.environ.get(WHERE, os.devnull)))


class Reader:
    """Reads the ledgers of a folder, again and again, each entry once; one that is half written is left for later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def news(self) -> Iterator[Entry]:
        """Return what was written since the last time, by its time; entries of one file stay in their order."""
        found: list[Entry] = []
        # workers before publishers: what a worker tells of, a publisher has told of before
        for path in sorted(self._folder.glob("*.ledger"), reverse=True):
            start = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(start)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = start + len(whole) + len(newline)
            found += [orjson.loads(line) for line in whole.splitlines()]
        return iter(sorted(found, key=lambda entry: entry["at"]))
