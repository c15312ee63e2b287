"""`dead`: files that can be read once, and disks and folders that take nothing."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Bury, Run
from .test_dead import ids


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no folder for temporary files, as in a container that may not be written to."""
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    monkeypatch.setattr(tempfile, "tempdir", None)


def on_a_full_disk(work: Callable[[], None], most: int = 10) -> None:
    """Do the work where no file may have more bytes than these."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_letters_come_from_what_can_be_read_once(run: Run, bury: Bury, tmp_path: Path) -> None:
    bury()
    bury()
    file, pipe = tmp_path / "letters", tmp_path / "pipe"
    run("dead", "export", str(file))
    run("dead", "discard", "--yes")
    os.mkfifo(pipe)
    # as `dead import <(zcat letters.gz)` has it
    writer = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    writer.start()
    done = run("dead", "import", str(pipe))
    writer.join()
    assert (done.exit_code, done.stdout) == (0, "import: 2 letters\n")
    assert ids(run) == ["0-0", "0-1"]


def test_letters_of_a_service_that_is_gone_from_the_code_come_back_and_are_erased(
    run: Run, bury: Bury, tmp_path: Path
) -> None:
    bury("cellar", "fetch")
    bury("cellar", "fetch")
    file = tmp_path / "letters"
    assert run("dead", "export", str(file), "--service", "cellar").exit_code == 0
    run("dead", "discard", "--service", "cellar", "--yes")
    assert run("dead", "import", str(file)).stdout == "import: 2 letters\n"
    assert ids(run, "--service", "cellar") == ["0-0", "0-1"]
    run("dead", "discard", "cellar/0-0")
    done = run("dead", "compact", "cellar", "--yes")
    assert done.stdout == "compact: 1 closed letters of cellar are erased, 1 open ones are left\n"


def test_what_no_service_can_be_called_is_neither_imported_nor_compacted(run: Run, bury: Bury) -> None:
    bury()
    good = json.loads(run("dead", "export", "-").stdout)
    bad = good | {"service": "A b", "failure": good["failure"] | {"service": "A b"}}
    done = run("dead", "import", "-", input=json.dumps(bad) + "\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("line 1: service 'A b': a name has")
    done = run("dead", "compact", "A b", "--yes")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("service 'A b': a name has")


def test_a_disk_that_is_full_takes_no_export_and_keeps_no_part_of_one(run: Run, bury: Bury, tmp_path: Path) -> None:
    bury()
    file = tmp_path / "letters"

    def export() -> None:
        done = run("dead", "export", str(file))
        told = f"{file} is not complete, and was removed\ncannot write: File too large\n"
        assert (done.exit_code, done.stderr) == (1, told)

    on_a_full_disk(export)
    assert not file.exists()


def test_where_no_temporary_file_can_be_made_what_to_set_is_told(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch, nowhere: None
) -> None:
    bury()
    monkeypatch.setenv("EDITOR", "true")
    for arguments in (["import", "-"], ["edit", "0-0"]):
        done = run("dead", *arguments, input="{}\n")
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == "there is no folder for temporary files: set TMPDIR to one that can be written to\n"


def test_what_could_not_be_written_for_the_editor_is_not_taken_for_what_somebody_wrote(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bury()
    monkeypatch.setenv("EDITOR", "true")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def edit() -> None:
        done = run("dead", "edit", "0-0")
        assert (done.exit_code, done.stderr) == (1, "cannot write: File too large\n")

    on_a_full_disk(edit)
    assert list(tmp_path.iterdir()) == []
