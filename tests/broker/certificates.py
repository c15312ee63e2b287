"""Certificates of a private authority, made by trustme: the broker's, a client's, and what does not fit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


HERE = ("127.0.0.1", "localhost")


class Authority:
    """An authority of the tests' own; what it signs is written to `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def sign(self, name: str, *identities: str, expired: bool = False) -> tuple[Path, Path]:
        """Write a certificate for these hosts (this one by default) and its key; return both files."""
        until = datetime.now(UTC) - timedelta(days=1) if expired else None
        signed = self._ca.issue_cert(*(identities or HERE), not_after=until)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        # written beside and moved: whoever reads them meanwhile gets the old ones or the new ones
        signed.private_key_pem.write_to_path(self.folder / "key.new")
        with (self.folder / "certificate.new").open("wb") as chain:
            for blob in signed.cert_chain_pems:
                chain.write(blob.bytes())
        (self.folder / "key.new").replace(key)
        (self.folder / "certificate.new").replace(certificate)
        return certificate, key
