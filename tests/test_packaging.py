"""The wheel that users install: the library, its types, and nothing of the shop."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path


ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_the_library_only_and_says_that_it_is_typed(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "bus", tmp_path / "bus", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from flit_core.buildapi import build_wheel; print(build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    )
    names = zipfile.ZipFile(tmp_path / done.stdout.strip()).namelist()
    assert {name.partition("/")[0] for name in names} == {"bus", "tidegate-0.1.0.dist-info"}
    assert "bus/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_dependency_earns_its_line() -> None:
    table = (ROOT / "docs" / "dependencies.md").read_text()
    project = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("]")[0]
    names = [line.strip().strip('",').partition(">")[0] for line in project.splitlines() if line.strip()]
    assert names
    assert [name for name in names if f"| {name} |" not in table] == []


def test_the_lock_has_a_hash_for_everything_and_names_no_host() -> None:
    for lock in (ROOT / "requirements.lock", *ROOT.glob("*/requirements.lock")):
        text = lock.read_text()
        pinned = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert pinned
        assert all("==" in line and line.endswith("\\") for line in pinned)
        assert "://" not in text


def test_the_lock_of_node_has_a_hash_for_everything_and_names_no_host() -> None:
    text = (ROOT / "tests" / "languages" / "package-lock.json").read_text()
    pinned = [package for name, package in json.loads(text)["packages"].items() if name]
    assert pinned
    assert all(package["version"] and package["integrity"] for package in pinned)
    assert "://" not in text


def test_the_container_gets_what_the_tests_ran_with_and_nothing_of_development() -> None:
    everything = (ROOT / "requirements.lock").read_text()
    runtime = (ROOT / "deploy" / "requirements.lock").read_text()
    assert set(runtime.splitlines()) < set(everything.splitlines())
    installed = {line.partition("==")[0] for line in runtime.splitlines() if "==" in line}
    table = (ROOT / "docs" / "dependencies.md").read_text()
    named = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")} - {"package", "---"}
    assert named <= installed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    development = {re.split(r"[<>=\[;]", line)[0] for line in project["dependency-groups"]["dev"]}
    assert installed & development == set()
