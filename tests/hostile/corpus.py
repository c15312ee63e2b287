"""The corpus: messages that found something, or go a way of their own; each a small file, sent again as it was.

`properties` and `body` are base64 of zlib. `verdict` is what the message came to when it was found, and `verdicts`
what it may come to: with an `expiration` it depends on who is first, the worker or the broker.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from .messages import Hostile
from .run import HANDLED, REASONS
from .sending import Sent, marked


FOLDER: Final = Path(__file__).parent / "corpus"
LOOKED_AT: Final = ("expiration", "x-first-death-reason", "CC", "BCC")
"""Names of headers and properties that checks ask for."""


def kept(sent: Sent, body: bytes, verdict: str, about: str) -> dict[str, Any]:
    """Return a message as a value of JSON; `body` is the one without a token."""
    verdicts = sorted({HANDLED} | REASONS[sent.handler]) if sent.hostile.has("expiration") else [verdict]
    return {
        "about": about,
        "handler": sent.handler,
        "direct": sent.direct,
        "words": _packed(sent.hostile.words),
        "flags": sent.hostile.flags,
        "properties": _packed(sent.hostile.properties),
        "body": _packed(body),
        "has": [name for name in LOOKED_AT if sent.hostile.has(name)],
        "verdict": verdict,
        "verdicts": verdicts,
    }


def write(folder: Path, message: dict[str, Any]) -> Path:
    """Write a message to a file that is named by what it is."""
    text = json.dumps(message, indent=1) + "\n"
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{message['handler']}-{message['verdict']}-{digest}.json"
    path.write_text(text)
    return path


def corpus(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return every message of the corpus."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def addressed(messages: Sequence[dict[str, Any]], first: int = 0) -> Iterator[Sent]:
    """Return the messages as they are sent, each with a token of its own."""
    for token, message in enumerate(messages, first):
        names = tuple((name.encode(), b"") for name in message["has"])
        hostile = Hostile(
            _unpacked(message["words"]),
            message["flags"],
            _unpacked(message["properties"]),
            _unpacked(message["body"]),
            names,
            (),
        )
        yield Sent(token, message["handler"], hostile, marked(hostile.body, token), message["direct"])


def _packed(raw: bytes) -> str:
    return b64encode(zlib.compress(raw, 9)).decode() if raw else ""


def _unpacked(text: str) -> bytes:
    return zlib.decompress(b64decode(text)) if text else b""
