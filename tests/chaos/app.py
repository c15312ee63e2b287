"""The worker under attack: `python -m tests.chaos.app run`."""

from __future__ import annotations

from bus import App

from .orphan import end_with_parent
from .services import recorded


app = App("chaos", events="tests.chaos.events", services="tests.chaos.services", middleware=[recorded])

if __name__ == "__main__":
    end_with_parent()
    app.cli()
