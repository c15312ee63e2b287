"""The Dockerfile: linted, and what its image must and must not have; the reader that takes it apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .compose import DOCKERFILE, ROOT
from .dockerfile import filled, pairs, parse
from .folder import Ignored


def test_the_dockerfile_has_nothing_that_a_linter_would_change() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    user, _, group = parse(DOCKERFILE.read_text())[-1].last("USER").text.partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_what_is_installed_is_locked_with_hashes_and_leaves_no_cache() -> None:
    [install] = [
        each.text
        for stage in parse(DOCKERFILE.read_text())
        for each in stage.instructions
        if each.keyword == "RUN" and "pip" in each.text
    ]
    assert "--require-hashes -r requirements.lock" in install
    assert "--no-cache-dir" in install


def test_the_image_has_no_step_that_installs_in_its_last_stage() -> None:
    last = parse(DOCKERFILE.read_text())[-1]
    assert [each.text for each in last.instructions if each.keyword == "RUN"] == []


def test_only_what_the_image_needs_is_sent_to_the_build() -> None:
    out = Ignored((ROOT / ".dockerignore").read_text())
    kept = {path.name for path in ROOT.iterdir() if not out(path.name)}
    assert kept <= {"app.py", "bus", "events", "examples", "handlers"}
    assert not out("bus/cli/run.py")
    assert not out("deploy/requirements.lock")
    for name in ("tests/conftest.py", ".venv/bin/python", "deploy/secrets/bus_password", "bus/__pycache__/app.pyc"):
        assert out(name)


def test_a_dockerfile_is_read_with_its_stages_and_continued_lines() -> None:
    first, second = parse(
        """# a comment
        ARG VERSION=3.13
        FROM python:${VERSION}-slim AS build
        RUN one \\
          # a comment between
          && two "a  b"

        FROM scratch
        COPY --from=build --chown=1 /a /b
        HEALTHCHECK --interval=5s CMD ["x", "y z"]
        cmd ["x"]
        """
    )
    assert (first.base, first.name, second.base) == ("python:3.13-slim", "build", "scratch")
    assert first.last("RUN").text.split() == ["one", "&&", "two", '"a', 'b"']
    assert second.last("COPY").flags == {"from": "build", "chown": "1"}
    assert second.last("COPY").text == "/a /b"
    assert second.last("HEALTHCHECK").words == ["x", "y z"]
    assert second.last("CMD").words == ["x"]


@pytest.mark.parametrize(
    "text", ["RUN x", "FROM a\nRUN <<EOF", "FROM a\nVOLUME /x", "FROM a\nRUN x \\", "FROM a\nHEALTHCHECK NONE"]
)
def test_what_the_reader_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_variables_are_filled_in_or_missed() -> None:
    assert pairs('A=1 B="x $PATH" C=${PATH}:y', {"PATH": "/p"}) == {"A": "1", "B": "x /p", "C": "/p:y"}
    with pytest.raises(KeyError):
        filled("$NOWHERE", {})


def test_the_last_rule_of_a_dockerignore_that_fits_decides() -> None:
    out = Ignored("# all\n*\n!a\n!b/c.txt\n**/cache\n")
    assert [name for name in ("a", "a/x", "a/y/cache/z", "b", "b/c.txt", "b/d", "d") if not out(name)] == [
        "a",
        "a/x",
        "b/c.txt",
    ]
