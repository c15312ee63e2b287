"""Importing a module of the app: whatever it raises is a mistake in a few lines, but for a wish to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import ConfigurationError
from bus.importing import imported

from .packages import Written


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    packages = Written(tmp_path, monkeypatch)
    yield packages
    packages.forget()


@pytest.mark.parametrize("error", ["BaseException('x')", "BaseExceptionGroup('x', [SystemExit(1)])"])
def test_what_is_no_exception_as_others_are_is_told_like_any_other(written: Written, error: str) -> None:
    # as an extension in Rust that panics, or pytest.skip
    written.write(panicking=f"raise {error}")
    told = (
        rf"services: the import of panicking failed: {error.partition('(')[0]}: x.*\n  \S+panicking\.py:1, in <module>"
    )
    with pytest.raises(ConfigurationError, match=told):
        imported("panicking", "services")


def test_ctrl_c_while_a_module_is_imported_is_an_interruption(written: Written) -> None:
    written.write(slow="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        imported("slow", "services")
