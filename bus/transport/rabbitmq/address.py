"""Where the broker is: `BUS_URL` taken apart into one address per host.

Whatever is wrong with a URL is told without quoting what may be a part of the password.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ...errors import ConfigurationError
from ...settings import Settings
from .tls import Files, verdict


PORTS: Final = {"amqp": 5672, "amqps": 5671}
HEARTBEAT: Final = 30.0
"""Seconds between signs of life, unless the URL says `?heartbeat=`."""
SHAPE: Final = "a URL is amqp://user:password@host:port/vhost, with / ? # [ ] @ of its parts written as %2F and so on"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One host of a broker and how to log in there; `name` is what the broker shows for the connection."""

    host: str
    port: int
    vhost: str
    login: str
    password: str = field(repr=False)
    password_file: Path | None = None
    tls: Files | None = None
    heartbeat: float = HEARTBEAT
    name: str = "tidegate"

    def __str__(self) -> str:
        vhost = "" if self.vhost == "/" else quote(self.vhost, safe="")
        return f"{'amqps' if self.tls else 'amqp'}://{self.host}:{self.port}/{vhost}"

    def secret(self) -> str:
        """Return the password as of now; raises ConfigurationError where its file cannot be read."""
        return self.password if self.password_file is None else _content(self.password_file)

    def context(self) -> ssl.SSLContext | None:
        """Return how to encrypt, as the files say now; raises ConfigurationError for files that do not fit."""
        return None if self.tls is None else self.tls.context()

    def verdict(self, error: BaseException) -> str | None:
        """Return what is definitely wrong with TLS, and what to do; None where another try may succeed."""
        certified = self.tls is not None and self.tls.certificate is not None
        wrong = verdict(error, self.host, certified=certified)
        return None if wrong is None else f"{self}: {wrong}"


def addresses(settings: Settings) -> tuple[Address, ...]:
    """Return the addresses of `amqp://user:password@host1:port,host2/vhost?heartbeat=30`, in their order.

    No host means localhost, no user means guest, no vhost means `/`. The files of the settings are read whenever a
    connection is made, and here to see that they can be. Raises ConfigurationError that says what is wrong with them,
    or with the URL.
    """
    url = _taken_apart(settings)
    if url.rest or "@" in url.path + url.query:
        raise ConfigurationError(f"BUS_URL: it goes on after its host in a way that cannot be read; {SHAPE}")
    tls, places, heartbeat = _files(settings, url.scheme), url.places(), url.heartbeat()
    if places is None:
        raise ConfigurationError(f"BUS_URL: a port is no number of 1 to 65535; {SHAPE}")
    if heartbeat is None:
        raise ConfigurationError("BUS_URL: its one option is ?heartbeat=seconds, from 1 to 600")
    found = tuple(
        Address(
            host=host,
            port=port,
            vhost=unquote(url.path[1:]) or "/",
            login=unquote(url.user.partition(":")[0]) or "guest",
            password=unquote(url.user.partition(":")[2]) or "guest",
            password_file=settings.password_file,
            tls=tls,
            heartbeat=heartbeat,
        )
        for host, port in places
    )
    found[0].secret()
    found[0].context()
    return found


def in_any_order(hosts: Sequence[Address]) -> Sequence[Address]:
    """Return the addresses in an order of chance: processes that name the same hosts would all use the first."""
    return random.sample(hosts, len(hosts))


@dataclass(frozen=True, slots=True)
class Parts:
    """A URL taken apart. A traceback that shows locals may show it, so none of its methods raises."""

    scheme: str
    user: str = field(repr=False)
    hosts: str = field(repr=False)
    path: str = field(repr=False)
    query: str = field(repr=False)
    rest: str = field(repr=False)

    def places(self) -> list[tuple[str, int]] | None:
        """Return host and port of each host; None where one has no port that is a number."""
        try:
            parts = [urlsplit(f"//{text}") for text in self.hosts.split(",")]
            return [(part.hostname or "localhost", part.port or PORTS[self.scheme]) for part in parts]
        except ValueError:
            return None

    def heartbeat(self) -> float | None:
        """Return the seconds; None where they are no number of 1 to 600, or something else was asked for."""
        try:
            given = dict(parse_qsl(self.query, keep_blank_values=True, strict_parsing=bool(self.query)))
            seconds = float(given.pop("heartbeat", HEARTBEAT))
        except ValueError:
            return None
        return seconds if not given and 1 <= seconds <= 600 else None


def _taken_apart(settings: Settings) -> Parts:
    try:
        scheme, authority, path, query, rest = urlsplit(settings.url)
    except ValueError:
        raise ConfigurationError(f"BUS_URL: it cannot be read; {SHAPE}") from None
    user, _, hosts = authority.rpartition("@")
    return Parts(scheme, user, hosts, path, query, rest)


def _content(file: Path) -> str:
    try:
        content = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"BUS_PASSWORD_FILE: {file} cannot be read ({why})") from None
    if not content:
        raise ConfigurationError(f"BUS_PASSWORD_FILE: {file} is empty; write the password into it")
    return content


def _files(settings: Settings, scheme: str) -> Files | None:
    files = Files(settings.ca_file, settings.cert_file, settings.key_file)
    if settings.key_file is not None and settings.cert_file is None:
        raise ConfigurationError("BUS_KEY_FILE is set without BUS_CERT_FILE; a key needs the certificate to it")
    if scheme == "amqps":
        return files
    if files != Files():
        raise ConfigurationError(
            "BUS_CA_FILE, BUS_CERT_FILE and BUS_KEY_FILE are for amqps://; BUS_URL is amqp://, which encrypts nothing"
        )
    return None
