"""Where the broker is: `BUS_URL` taken apart into one address per host."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ...errors import ConfigurationError
from ...settings import Settings


PORTS: Final = {"amqp": 5672, "amqps": 5671}
HEARTBEAT: Final = 30.0
"""Seconds between signs of life, unless the URL says `?heartbeat=`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One host of a broker and how to log in there; `name` is what the broker shows for the connection."""

    host: str
    port: int
    vhost: str
    login: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None = None
    heartbeat: float = HEARTBEAT
    name: str = "tidegate"

    def __str__(self) -> str:
        vhost = "" if self.vhost == "/" else quote(self.vhost, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{self.host}:{self.port}/{vhost}"


def addresses(settings: Settings) -> tuple[Address, ...]:
    """Return the addresses of `amqp://user:password@host1:port,host2/vhost?heartbeat=30`, in their order.

    No host means localhost, no user means guest, no vhost means `/`. The password may come from
    `BUS_PASSWORD_FILE`. Raises ConfigurationError that says what is wrong with the URL or the files.
    """
    try:
        url = urlsplit(settings.url)
        heartbeat = _heartbeat(url.query)
    except ValueError as error:
        raise ConfigurationError(f"BUS_URL: {error}; a URL is amqp://user:password@host:port/vhost") from error
    login, _, password = url.netloc.rpartition("@")[0].partition(":")
    tls = _tls(settings) if url.scheme == "amqps" else None
    hosts = url.netloc.rpartition("@")[2].split(",")
    return tuple(
        Address(
            host=host,
            port=port,
            vhost=unquote(url.path[1:]) or "/",
            login=unquote(login) or "guest",
            password=_password(settings) or unquote(password) or "guest",
            tls=tls,
            heartbeat=heartbeat,
        )
        for host, port in (_host(text, PORTS[url.scheme]) for text in hosts)
    )


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or port
    except ValueError as error:
        raise ConfigurationError(f"BUS_URL: {text!r} is no host:port ({error})") from error


def _heartbeat(query: str) -> float:
    given = parse_qs(query, strict_parsing=bool(query))
    if unknown := [name for name in given if name != "heartbeat"]:
        raise ValueError(f"?{unknown[0]}= is unknown; the one option of a URL is ?heartbeat=seconds")
    seconds = float(given.get("heartbeat", [str(HEARTBEAT)])[0])
    if not 1 <= seconds <= 600:
        raise ValueError("?heartbeat= takes 1 to 600 seconds")
    return seconds


def _password(settings: Settings) -> str:
    if settings.password_file is None:
        return ""
    try:
        return settings.password_file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"BUS_PASSWORD_FILE: {error}") from error


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"BUS_CA_FILE, BUS_CERT_FILE, BUS_KEY_FILE: {error}") from error
    return context
