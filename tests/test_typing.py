"""What users write type-checks, and their mistakes do not; each checker in its strict mode."""

import json
import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
GOOD = ROOT / "tests/typing/good.py"
BAD = ROOT / "tests/typing/bad.py"

MISTAKES = [
    (number, mark[1])
    for number, line in enumerate(BAD.read_text().splitlines(), 1)
    if (mark := re.search(r"# E: (\S+)$", line))
]


def check(*command: str) -> str:
    command = (sys.executable, "-m", *command)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return run.stdout + run.stderr


def test_mypy_accepts_good_code_and_finds_each_mistake() -> None:
    said = check("mypy", "--strict", "--config-file=", "--cache-dir=.mypy_cache/typing", str(GOOD), str(BAD))
    found = re.findall(r"^\S*?(\w+\.py):(\d+): error: .*\[(\S+)\]$", said, re.MULTILINE)
    assert list(dict.fromkeys(found)) == [(BAD.name, str(line), code) for line, code in MISTAKES], said


def test_pyright_accepts_good_code_and_finds_each_mistake(tmp_path: Path) -> None:
    config = tmp_path / "pyrightconfig.json"
    checked = {"typeCheckingMode": "strict", "include": [str(GOOD), str(BAD)], "extraPaths": [str(ROOT)]}
    config.write_text(json.dumps(checked))
    said = check("basedpyright", "--project", str(config), "--pythonpath", sys.executable, "--outputjson")
    report = json.loads(said)
    found = [(Path(error["file"]), error["range"]["start"]["line"] + 1) for error in report["generalDiagnostics"]]
    assert list(dict.fromkeys(found)) == [(BAD, line) for line, _ in MISTAKES], said
    assert report["summary"]["filesAnalyzed"] == len((GOOD, BAD))
