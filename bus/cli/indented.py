"""JSON with a line for each value, which is as it was written: a number that is read first may come out as another."""

from __future__ import annotations

import json
import re
from typing import Final


TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
STEP: Final = "  "


def indented(body: bytes) -> str | None:
    """Return the JSON of a body, indented; None where it is none."""
    try:
        text = body.decode(json.detect_encoding(body))
        json.loads(text, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None
    told: list[str] = []
    depth, opened = 0, False
    for token in TOKEN.findall(text):
        closes = token in ("]", "}")
        depth -= closes
        if opened != closes:
            told.append("\n" + STEP * depth)
        opened = token in ("[", "{")
        depth += opened
        told.append({",": ",\n" + STEP * depth, ":": ": "}.get(token) or _readable(token))
    return "".join(told)


def _readable(token: str) -> str:
    """Return a string with its letters instead of their numbers; half of one stays a number."""
    if "\\u" not in token:
        return token
    read = json.dumps(json.loads(token), ensure_ascii=False)
    return token if any("\ud800" <= letter <= "\udfff" for letter in read) else read
