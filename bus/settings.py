"""Settings: `BUS_*` from the environment as one frozen value that is passed down."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from .errors import ConfigurationError


PREFIX: Final = "BUS_"
NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
RESERVED: Final = frozenset({"dead", "retry", "return", "suspects", "delay", "events", "tidegate"})


def check_name(what: str, name: str) -> str:
    """Return `name` if queues may be named by it; raise ConfigurationError if not."""
    if not NAME.fullmatch(name) or len(name) > 60:
        raise ConfigurationError(f"{what} {name!r}: a name has up to 60 of a-z, 0-9 and _, and starts with a letter")
    if name in RESERVED:
        raise ConfigurationError(f"{what} {name!r}: Tidegate's own queues have that name; choose another")
    return name


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError("it must be a number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise ValueError("it must be a whole number of 1 or more")
    return value


def _choice(*allowed: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(f"it must be one of {', '.join(allowed)}")
        return text.lower()

    return read


def address(text: str) -> tuple[str, int]:
    """Return host and port of "host:port"; raise ValueError where it is none. An IPv6 host stands in brackets."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not bare or bracketed != (":" in bare) or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ValueError("it must be host:port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080")
    return bare, int(port)


def _address(text: str) -> str:
    address(text)
    return text


def _namespace(text: str) -> str:
    return check_name("namespace", text) if text else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment decides. Times are in seconds; `url` "" means that none was given."""

    url: str = field(default="", repr=False, metadata={"read": str})
    namespace: str = field(default="", metadata={"read": _namespace})
    publish_timeout: float = field(default=10.0, metadata={"read": _seconds})
    grace: float = field(default=30.0, metadata={"read": _seconds})
    max_message_bytes: int = field(default=1_048_576, metadata={"read": _count})
    max_hops: int = field(default=32, metadata={"read": _count})
    crash_limit: int = field(default=5, metadata={"read": _count})
    deploy_grace: float = field(default=600.0, metadata={"read": _seconds})
    log_level: str = field(default="info", metadata={"read": _choice("debug", "info", "warning", "error")})
    log_format: str = field(default="auto", metadata={"read": _choice("auto", "json", "text")})
    http: str = field(default="", metadata={"read": _address})
    ca_file: Path | None = field(default=None, metadata={"read": Path})
    cert_file: Path | None = field(default=None, metadata={"read": Path})
    key_file: Path | None = field(default=None, metadata={"read": Path})
    password_file: Path | None = field(default=None, metadata={"read": Path})

    @property
    def scheme(self) -> str:
        """The part of `url` that names the transport, in lower case; "" where there is none."""
        scheme = self.url.partition("://")[0].lower() if "://" in self.url else ""
        return scheme if scheme.isalnum() else ""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of the environment; raise ConfigurationError that lists every value that is wrong."""
    values: dict[str, Any] = {}
    problems = []
    for known in fields(Settings):
        name = PREFIX + known.name.upper()
        if not (text := environment.get(name, "").strip()):
            continue
        try:
            values[known.name] = known.metadata["read"](text)
        except (ValueError, ConfigurationError) as error:
            problems.append(f"{name}={text!r}: {error}")
    if problems:
        raise ConfigurationError(*problems)
    return Settings(**values)


def unknown(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line for each `BUS_` name that is no setting, with the nearest that is."""
    known = [setting.name.upper() for setting in fields(Settings)]
    lines = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and (given := name.removeprefix(PREFIX)) not in known:
            near = difflib.get_close_matches(given, known, 1)
            lines.append(f"{name} is no setting of Tidegate" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    return lines


def warn_of_unknown() -> None:
    """Log a warning for each `BUS_` name of the environment that is no setting."""
    # not above: who only reads settings needs no structlog
    from .logs import logger

    for line in unknown():
        logger().warning("unknown setting", told=line)
