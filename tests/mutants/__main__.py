"""Breaks each guarantee on purpose and shows that its tests go red: `python -m tests.mutants [F3 …]`.

A mutant is a small patch named after its guarantee; its first line names the tests that must fail. The tree is copied,
patched and tested elsewhere; a mutant whose tests stay green fails the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent
MUTANTS = Path(__file__).parent
AT_ONCE = 2
LONGEST = 300
KEPT_OUT = shutil.ignore_patterns(".git", ".venv", ".cache", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


def main(chosen: list[str]) -> int:
    """Run the chosen mutants, all by default; return 1 if one survived."""
    patches = [path for path in sorted(MUTANTS.glob("*.patch")) if not chosen or path.stem.split("-")[0] in chosen]
    if not patches:
        print(f"there is no mutant of {', '.join(chosen)}")
        return 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        survived = [patch.stem for patch, died in zip(patches, pool.map(dies, patches), strict=True) if not died]
    print(f"{len(patches) - len(survived)} of {len(patches)} mutants were seen" + (f"; {survived}" if survived else ""))
    return 1 if survived else 0


def dies(patch: Path) -> bool:
    """Tell whether the tests of a mutant go red, and for the right reason: they fail, they do not merely break."""
    tests = patch.read_text().splitlines()[0].removeprefix("# must fail: ").split()
    with tempfile.TemporaryDirectory(prefix="tidegate-mutant-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=KEPT_OUT)
        subprocess.run(
            ["git", "apply", "--unsafe-paths", f"--directory={copy}", patch], cwd="/", check=True, timeout=30
        )
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    died = done.returncode == 1 and "failed" in done.stdout.splitlines()[-1]
    print(f"{'seen    ' if died else 'SURVIVED'} {patch.stem}: {done.stdout.splitlines()[-1]}", flush=True)
    return died


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
