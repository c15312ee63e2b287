"""CloudEvents' structured mode: the attributes stand in the body, around the data. Of its formats, JSON is read.

https://github.com/cloudevents/spec/blob/main/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

from pydantic_core import from_json, to_json

from ...message import STRUCTURED


BATCH: Final = f"{STRUCTURED}-batch"
_JSON: Final = re.compile(r"[^;]*[/+]json\s*(;.*)?", re.IGNORECASE)


def opened(content_type: str, body: bytes, problems: list[str], *, plain: bool) -> tuple[dict[str, Any], bytes] | None:
    """Return the attributes and the data of a body in structured mode; None for any other.

    The content type declares it. `plain` says that nothing else tells attributes: then an object that names its
    `specversion` is one too.
    """
    declared = content_type.lower().startswith(STRUCTURED)
    if declared and (refusal := _refused(content_type)):
        problems.append(refusal)
        return None
    if not declared and not (plain and body[:1] == b"{" and b'"specversion"' in body):
        return None
    try:
        envelope = from_json(body, allow_inf_nan=False)
        if not isinstance(envelope, dict) or not isinstance(envelope.get("type"), str):
            raise TypeError("the body is no object with a type")
        return envelope, _data(envelope)
    except (TypeError, ValueError) as error:
        if declared:
            problems.append(f"structured mode: {error}")
        return None


def _refused(content_type: str) -> str | None:
    if content_type.lower().startswith(BATCH):
        return f"{content_type[:99]}: a batch is not read; publish each of its events as a message of its own"
    if "+" in content_type and not _JSON.fullmatch(content_type):
        return f"{content_type[:99]}: of the structured formats only JSON is read"
    return None


def _data(envelope: dict[str, Any]) -> bytes:
    """Take the data out of the envelope, as the body that it would be in binary mode."""
    encoded, there = envelope.pop("data_base64", None), "data" in envelope
    data, kind = envelope.pop("data", None), envelope.get("datacontenttype")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    if not there:
        return b""
    if isinstance(data, str) and isinstance(kind, str) and not _JSON.fullmatch(kind):
        return data.encode()
    return to_json(data, inf_nan_mode="strings")  # such as 1e999, for which JSON has no other word
