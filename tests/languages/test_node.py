"""What Node's part of the tests is installed from."""

from __future__ import annotations

import json

from .node import FOLDER


def test_the_lock_has_a_hash_for_everything_and_names_no_host() -> None:
    text = (FOLDER / "package-lock.json").read_text()
    pinned = [package for name, package in json.loads(text)["packages"].items() if name]
    assert pinned
    assert all(package["version"] and package["integrity"] for package in pinned)
    assert "://" not in text
