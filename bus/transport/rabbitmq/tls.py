"""TLS: the files of `BUS_CA_FILE`, `BUS_CERT_FILE` and `BUS_KEY_FILE` as a context, and in words what goes wrong."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ...errors import ConfigurationError


EXPIRED: Final = 10
NOT_YET_VALID: Final = 9
NOT_ITS_NAME: Final = (62, 64)
"""OpenSSL's codes of what it finds wrong with a certificate."""
NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
UNACCEPTED: Final = (
    "UNKNOWN_CA",
    "BAD_CERTIFICATE",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_REVOKED",
    "UNSUPPORTED_CERTIFICATE",
    "ACCESS_DENIED",
)


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a connection in TLS; without any, the system's authorities, and no certificate of our own."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return a context of what the files have now. Raises ConfigurationError that names the setting."""
        _read("BUS_CA_FILE", self.ca)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except ssl.SSLError as error:
            raise ConfigurationError(f"BUS_CA_FILE: {self.ca} holds no certificate in PEM form") from error
        if self.certificate is not None:
            self._load(context, self.certificate)
        return context

    def _load(self, context: ssl.SSLContext, certificate: Path) -> None:
        name, key = ("BUS_CERT_FILE", certificate) if self.key is None else ("BUS_KEY_FILE", self.key)
        if b"BEGIN CERTIFICATE" not in _read("BUS_CERT_FILE", certificate):
            raise ConfigurationError(f"BUS_CERT_FILE: {certificate} holds no certificate in PEM form")
        if b"PRIVATE KEY" not in _read(name, key):
            hint = "; give the key's file in BUS_KEY_FILE" if self.key is None else ""
            raise ConfigurationError(f"{name}: {key} holds no private key in PEM form{hint}")

        def no_passphrase() -> NoReturn:
            raise ConfigurationError(f"{name}: {key} is encrypted, and nobody is asked for a passphrase; decrypt it")

        try:
            context.load_cert_chain(certificate, self.key, no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError(
                    f"{name}: {key} is not the key of the certificate in {certificate}; give two that belong together"
                ) from error
            raise ConfigurationError(
                f"BUS_CERT_FILE, BUS_KEY_FILE: {certificate} and {key} cannot be used: {error.reason or error}"
            ) from error


def _read(name: str, file: Path | None) -> bytes:
    if file is None:
        return b""
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{name}: {file} cannot be read ({error.strerror}); give a file in PEM form that this user may read"
        ) from error


def verdict(error: BaseException, host: str, *, certified: bool) -> str | None:
    """Return what is wrong and what to do, where it is definite; `certified` tells if we showed a certificate."""
    for each in _chain(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return _unfit(each, host)
        if isinstance(each, ssl.SSLError):
            return _refused(each.reason or "", certified=certified)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[BaseException] = set()
    while error is not None and error not in seen:  # a library may have raised in circles
        seen.add(error)
        yield error
        error = error.__cause__ or error.__context__


def _unfit(error: ssl.SSLCertVerificationError, host: str) -> str:
    unfit = "the broker's certificate does not fit"
    if error.verify_code == EXPIRED:
        return f"{unfit}: it has expired; renew it at the broker"
    if error.verify_code == NOT_YET_VALID:
        return f"{unfit}: it is not valid yet; look at the clocks of both machines"
    if error.verify_code in NOT_ITS_NAME:
        return f"{unfit}: it is not for the host {host}; name the broker in BUS_URL as its certificate does"
    why = error.verify_message
    return f"{unfit}: {why}; set BUS_CA_FILE to the certificate of the authority that signed it"


def _refused(reason: str, *, certified: bool) -> str | None:
    if reason in NO_TLS:
        return "it does not speak TLS there; BUS_URL needs the port for TLS, usually 5671, or amqp:// for a plain one"
    if "ALERT" not in reason:
        return None
    if "CERTIFICATE_EXPIRED" in reason:
        return "the certificate in BUS_CERT_FILE has expired; renew it"
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and not certified):
        return "the broker wants to see a certificate; set BUS_CERT_FILE and BUS_KEY_FILE"
    if any(name in reason for name in UNACCEPTED):
        told = reason.partition("ALERT_")[2].lower().replace("_", " ")
        return f"the broker does not accept the certificate in BUS_CERT_FILE ({told}); have one that it trusts signed"
    if "PROTOCOL_VERSION" in reason:
        return "the broker speaks no version of TLS that this machine speaks; renew the older of the two"
    return None
