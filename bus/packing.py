"""What a dead letter turns into: values of JSON for a file, and back; and the message that an edit of it makes."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Final, get_args

from .message import JSON_CONTENT, STRUCTURED, Message, derived_id
from .outcome import Failure, Letter, Reason


FORMAT: Final = 1
PLAIN: Final = (
    *("id", "type", "source", "correlation_id", "causation_id", "key", "subject", "reply_to", "wants"),
    "content_type",
)
TIMES: Final = ("time", "expires")
NUMBERS: Final = ("version", "hops", "header_bytes")
TEXTS_OF_FAILURE: Final = ("service", "handler", "reason", "error_type", "error", "traceback", "worker")


def pack(letter: Letter) -> dict[str, object]:
    """Return the letter as values of JSON; a body that is no text is in base64."""
    message, failure = letter.message, letter.failure
    told: dict[str, object] = {name: getattr(message, name) for name in (*PLAIN, *NUMBERS, "id_made_up")}
    told |= {name: at.isoformat() for name in TIMES if (at := getattr(message, name)) is not None}
    told |= {"headers": dict(message.headers), "problems": list(message.problems)}
    try:
        told["body"] = message.body.decode()
    except UnicodeDecodeError:
        told["body_base64"] = b64encode(message.body).decode()
    record: dict[str, object] = {name: getattr(failure, name) for name in (*TEXTS_OF_FAILURE, "attempts")}
    record |= {name: getattr(failure, name).isoformat() for name in ("first_failed_at", "last_failed_at")}
    marks = [{"kind": m.kind, "operator": m.operator, "at": m.at.isoformat(), "to": m.to} for m in letter.history]
    about = {"format": FORMAT, "letter": letter.id, "service": letter.service, "handler": letter.handler}
    return {**about, "failed_again": letter.failed_again, "message": told, "failure": record, "history": marks}


def edited(letter: Letter, body: bytes) -> Message:
    """Return the message that an edit of the letter makes: another fact, caused by the old one.

    Its id is made from the old one and the body, so that the same edit made twice is one message to whoever drops
    duplicates, and no edit is taken for the message that failed.
    """
    old = letter.message
    structured = old.content_type.startswith(STRUCTURED)
    return replace(
        old,
        id=derived_id(old, f"{letter.service}.{letter.handler}", 0, blake2b(body, digest_size=16).hexdigest()),
        body=body,
        correlation_id=old.correlation_id or old.id,
        causation_id=old.id,
        content_type=JSON_CONTENT if structured else old.content_type,
        id_made_up=False,
        header_bytes=0,
        problems=(),
    )


def unpack(packed: Mapping[str, object]) -> Letter:
    """Return the letter; raises ValueError that says what is wrong with it. Its history is not read."""
    if packed.get("format") != FORMAT:
        raise ValueError(f"format {packed.get('format')!r} is not {FORMAT}")
    if "entry" in packed:
        _check_entry(_object(packed, "entry"))
    told, record = _object(packed, "message"), _object(packed, "failure")
    texts = {name: _text(record, name) for name in TEXTS_OF_FAILURE}
    if texts["reason"] not in get_args(Reason):
        raise ValueError(f"failure: reason {texts['reason']!r} is none of {', '.join(get_args(Reason))}")
    rest: dict[str, Any] = {name: _time(record, name) for name in ("first_failed_at", "last_failed_at")}
    failure = Failure(**texts, attempts=_whole(record, "attempts"), **rest)  # type: ignore[arg-type]
    return Letter(
        id=_text(packed, "letter"),
        service=failure.service,
        handler=failure.handler,
        message=_message(told),
        failure=failure,
    )


def _message(told: Mapping[str, object]) -> Message:
    given: dict[str, Any] = {name: _text(told, name) for name in PLAIN if told.get(name) is not None}
    given |= {name: _time(told, name) for name in TIMES if told.get(name) is not None}
    given |= {name: _whole(told, name) for name in NUMBERS if told.get(name) is not None}
    headers = told.get("headers", {})
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("message: headers are an object of texts")
    given |= {"version": given.get("version"), "headers": MappingProxyType(headers), "body": body_of(told)}
    given["id_made_up"] = told.get("id_made_up") is True
    if missing := [
        f.name for f in fields(Message) if f.name in ("id", "type", "source", "time") and f.name not in given
    ]:
        raise ValueError(f"message: {', '.join(missing)} is missing")
    return Message(**given)


def _check_entry(told: Mapping[str, object]) -> None:
    """Raise ValueError where what one kind of broker needs beside the letter is not what it should be."""
    for name in ("header", *(name for name in ("body_base64",) if name in told)):
        base64(told, name)
    _text(told, "key")
    bytes.fromhex(_text(told, "identity"))


def body_of(told: Mapping[str, object]) -> bytes:
    """Return the body, which is text or base64."""
    if "body" in told:
        return _text(told, "body").encode()
    return base64(told, "body_base64")


def base64(told: Mapping[str, object], name: str) -> bytes:
    """Return the bytes of a value in base64; raises ValueError."""
    try:
        return b64decode(_text(told, name), validate=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _object(of: Mapping[str, object], name: str) -> Mapping[str, object]:
    if isinstance(value := of.get(name), dict):
        return value
    raise ValueError(f"{name} is missing, or no object")


def _text(of: Mapping[str, object], name: str) -> str:
    if isinstance(value := of.get(name), str):
        return value
    raise ValueError(f"{name} is missing, or no text")


def _whole(of: Mapping[str, object], name: str) -> int:
    value = of.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is missing, or no whole number")
    return value


def _time(of: Mapping[str, object], name: str) -> datetime:
    value = _text(of, name)
    try:
        read = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if read.tzinfo is None:
        raise ValueError(f"{name}: {value!r} has no time zone")
    return read
