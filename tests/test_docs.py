"""Every code block and every command of the README and the docs runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.deploy.commands import contained


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```(\w+)( test)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[bool, str]]:
    """Return the page's blocks of a language: whether it is a test, and the code."""
    return [(bool(test), code) for kind, test, code in BLOCK.findall(page.read_text()) if kind == language]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.name)
def test_the_python_of_a_page_runs_and_its_tests_pass(page: Path, tmp_path: Path) -> None:
    found = blocks(page, "python")
    code = "\n\n".join(code for _, code in found)
    file = tmp_path / "test_page.py"
    file.write_text(code + "\n\nasync def test_the_page_can_be_imported() -> None: ...\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", str(file)]
    options = ["-o", "asyncio_default_fixture_loop_scope=function", "--rootdir", str(tmp_path)]
    done = run([*command, *options], os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    tests = re.findall(r"^(?:async )?def test_", code, re.MULTILINE)
    assert f"{len(tests) + 1} passed" in done.stdout


@pytest.mark.parametrize("page", pages_with("sh"), ids=lambda page: page.name)
def test_the_commands_of_a_page_work_on_rabbitmq(page: Path, vhost: str, tmp_path: Path) -> None:
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": programs, "BUS_URL": vhost, "COLUMNS": "120"}
    # what they write is the page's own
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))
    for _, code in blocks(page, "sh"):
        for line in filter(None, (re.sub(r"\s+#.*", "", line).strip() for line in code.splitlines())):
            if line.startswith("export BUS_URL="):
                continue
            worker = re.fullmatch(r"python app\.py( run.*)?", line)
            done = (
                run_until_started(line, environment, clone)
                if worker
                else run(["sh", "-c", bounded(line)], environment, clone)
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_a_command_for_docker_that_names_what_is_not_there_is_told() -> None:
    for wrong in (
        "docker build -f deploy/Dockerfiles -t shop .",
        "docker build -f deploy/Dockerfile --squash -t shop .",
        "docker compose -f compose.yaml ps",
        "docker compose -f deploy/compose.yaml logs workers",
        "docker compose -f deploy/compose.yaml up --wit",
    ):
        with pytest.raises((AssertionError, ValueError)):
            contained(wrong)


def bounded(line: str) -> str:
    """Return the command so that it comes to an end here: make only says what it would do."""
    if line.startswith("docker "):
        return contained(line)
    # they run these tests, or the demo, which has tests of its own
    return line.replace("make ", "make -n ", 1) if line.startswith("make ") else line


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", page.read_text()):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def run(command: list[str], environment: dict[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def run_until_started(line: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a worker, and stop it as soon as it says that it has started."""
    said, started = list[str](), False
    with subprocess.Popen(
        ["sh", "-c", f"exec {line}"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        late = threading.Timer(60, process.kill)
        late.start()
        assert process.stdout is not None
        for told in process.stdout:
            said.append(told)
            if "worker started" in told and not started:
                started = True
                process.terminate()
        code = process.wait()
        late.cancel()
    assert started, said
    return subprocess.CompletedProcess(line, code, "".join(said), "")
