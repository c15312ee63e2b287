"""The stall's events."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bus import Event


class Ordered(Event, type="stall.ordered"):
    dish: str
    plates: Annotated[int, Field(gt=0)] = 1


class Cooked(Event, type="stall.cooked"):
    dish: str


class Eaten(Event, type="stall.eaten"):
    dish: str
