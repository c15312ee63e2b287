"""Spans of time and rates as people type them: `90` (seconds), `30m`, `2h`, `7d`; `50/s`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from ..errors import ConfigurationError


UNITS: Final = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
SPAN: Final = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,6})?)([smhd]?)")
RATE: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)/([smh])")


def span(option: str, text: str) -> timedelta:
    """Return the span of time that was given to an option; raise ConfigurationError that shows how it is written."""
    if (read := SPAN.fullmatch(text)) is None:
        raise ConfigurationError(
            f"{option} {text!r}: it takes seconds, or a number with s, m, h or d, such as 30m or 7d"
        )
    return timedelta(**{UNITS[read[2]]: float(read[1])})


def rate(option: str, text: str) -> float:
    """Return the seconds between two things of a rate such as `50/s`, `100/m` or `10/h`."""
    if (read := RATE.fullmatch(text)) is None or not float(read[1]):
        raise ConfigurationError(
            f"{option} {text!r}: it takes a number a second, minute or hour, such as 50/s or 100/m"
        )
    return timedelta(**{UNITS[read[2]]: 1}).total_seconds() / float(read[1])
