"""Topic patterns as AMQP 0-9-1 defines them: dotted words, `*` is one word, `#` is zero or more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from .errors import ConfigurationError


LONGEST = 255
"""Bytes that AMQP allows in a routing key or binding key."""


def check(pattern: str) -> str:
    """Return `pattern` if it is dotted words that AMQP takes; raise ConfigurationError if not."""
    if not pattern or len(pattern.encode()) > LONGEST:
        raise ConfigurationError(f"topic pattern {pattern!r}: it must have 1 to {LONGEST} bytes")
    if any(map(str.isspace, pattern)):
        raise ConfigurationError(f"topic pattern {pattern!r}: it has white space; write words with dots between them")
    for word in pattern.split("."):
        if not word:
            raise ConfigurationError(f"topic pattern {pattern!r}: there is an empty word between two dots or at an end")
        if word not in ("*", "#") and ("*" in word or "#" in word):
            raise ConfigurationError(
                f"topic pattern {pattern!r}: '*' and '#' stand for whole words, so {word!r} would match only itself"
            )
    return pattern


def is_literal(pattern: str) -> bool:
    """Tell whether the pattern matches one event type only: itself."""
    return {"*", "#"}.isdisjoint(pattern.split("."))


def matches(pattern: str, key: str) -> bool:
    """Tell whether an event type (or any routing key) matches the pattern."""
    return _compiled(pattern).fullmatch(f".{key}" if key else "") is not None


def matches_any(patterns: Iterable[str], key: str) -> bool:
    """Tell whether the key matches one of the patterns."""
    return any(matches(pattern, key) for pattern in patterns)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    # each word is matched together with the dot before it, so that '#' can stand for no word at all
    words = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
    return re.compile("".join(words.get(word, r"\." + re.escape(word)) for word in pattern.split(".")), re.DOTALL)
