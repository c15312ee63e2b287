"""Breaks each guarantee on purpose and shows that its tests go red: `python -m tests.mutants [F3 …]`.

A mutant is a small patch named after its guarantee; its first line names the tests that must fail. The tree is copied,
patched and tested elsewhere; a mutant whose tests stay green fails the run, and so does one that fits the code no more.
"""

from __future__ import annotations

import os
import re
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
WHY = re.compile(r"^[E|+\s]+((?:[\w.]*Error|Failed|Timeout)\b.*)$", re.MULTILINE)


def main(chosen: list[str]) -> int:
    """Run the chosen mutants, all by default; return 1 unless every one was seen."""
    patches = [path for path in sorted(MUTANTS.glob("*.patch")) if not chosen or guarantee(path) in chosen]
    if not patches:
        print(f"there is no mutant of {', '.join(chosen)}")
        return 2
    with ThreadPoolExecutor(AT_ONCE) as pool:
        left = [patch.stem for patch, seen in zip(patches, pool.map(is_seen, patches), strict=True) if not seen]
    print(
        f"{len(patches) - len(left)} of {len(patches)} mutants were seen" + (f", not {', '.join(left)}" if left else "")
    )
    return 1 if left else 0


def guarantee(patch: Path) -> str:
    """Return the number of the guarantee that a mutant breaks."""
    return patch.stem.partition("-")[0]


def must_fail(patch: Path) -> list[str]:
    """Return the tests that must see a mutant."""
    return patch.read_text().splitlines()[0].removeprefix("# must fail: ").split()


def applied(patch: Path, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Apply a mutant to a tree, wherever that is."""
    command = ["git", "apply", "--unsafe-paths", f"--directory={tree}", *options, str(patch)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=30)


def is_seen(patch: Path) -> bool:
    """Tell whether the tests of a mutant fail, and do not merely break; print the verdict and the reason."""
    with tempfile.TemporaryDirectory(prefix="tidegate-mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=KEPT_OUT)
        if (done := applied(patch, tree)).returncode:
            print(f"STALE    {patch.stem}: {done.stderr.strip()}", flush=True)
            return False
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *must_fail(patch)]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"HANGS    {patch.stem}: no verdict within {LONGEST} s", flush=True)
            return False
    verdict = (done.stdout.splitlines() or ["nothing was printed"])[-1]
    seen = done.returncode == 1 and " failed" in f" {verdict}" and "error" not in verdict
    reasons = WHY.findall(done.stdout)
    why = reasons[-1][:150] if seen and reasons else done.stderr.strip()[-300:]
    print(f"{'seen    ' if seen else 'SURVIVED'} {patch.stem}: {verdict}{': ' + why if why else ''}", flush=True)
    return seen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
