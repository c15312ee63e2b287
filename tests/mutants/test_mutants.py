"""Every guarantee has a test and a mutant, and every mutant fits the code: `make mutants` shows that each is seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .__main__ import MUTANTS, ROOT, applied, guarantee, must_fail


PATCHES = sorted(MUTANTS.glob("*.patch"))
TABLE = (ROOT / "docs" / "contract.md").read_text()
PROMISED = re.findall(r"^\| ([A-Z]\d) \|", TABLE, re.MULTILINE)
NAMED = set(
    re.findall(
        r"def test_([a-z]\d)_", "".join(path.read_text() for path in (ROOT / "tests/contract").glob("test_*.py"))
    )
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutant_fits_the_code_and_names_tests_that_exist(patch: Path) -> None:
    done = applied(patch, ROOT, "--check")
    assert done.returncode == 0, f"write {patch.name} anew: {done.stderr}"
    assert must_fail(patch)
    for test in must_fail(patch):
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


def test_every_guarantee_of_the_table_has_a_test_and_a_mutant() -> None:
    assert len(PROMISED) > 20
    assert set(PROMISED) == {name.upper() for name in NAMED}
    assert set(PROMISED) == {guarantee(patch) for patch in PATCHES}
