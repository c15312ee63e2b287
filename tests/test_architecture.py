"""The shape of the code: which way imports point, how long files and functions are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
LONGEST_FILE = 500
LONGEST_FUNCTION = 50

LAYERS = (
    {"errors", "clock", "topic", "logs", "lots", "places", "forks", "interrupts", "beside"},
    {"settings", "fields", "event", "retry", "deadline", "flow", "pace", "endpoint", "metrics", "draining"},
    {"watchdog", "strays", "stopping"},
    {"message"},
    {"outcome", "replies", "topology"},
    {"packing"},
    {"transport"},
    {"transport.memory", "transport.memory_letters", "transport.memory_topology", "transport.rabbitmq"},
    {"context", "resources", "ordering", "store", "wrapped", "provided", "runs", "signature"},
    {"service"},
    {"middleware", "failure", "answers", "importing"},
    {"deploys", "idempotency", "calling"},
    {"delivery", "client"},
    {"subscriber", "lanes", "ordered", "opening", "hosting"},
    {"worker", "discovery"},
    {"health"},
    {"isolation"},
    {"testing", "app"},
    {"cli"},
)
"""From left to right: a module imports its own layer and those before it."""
TRANSPORTS_SEE = {
    *("errors", "clock", "topic", "logs", "lots", "forks", "settings", "event", "message", "outcome", "replies"),
    *("packing", "topology", "transport"),
}
ENTRY = {("app", "cli")}
"""`App.cli()` hands over to the command line: the one import that points right."""


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def place(path: Path) -> str:
    """Return the name of a module of `bus` as the layers have it."""
    parts = path.relative_to(ROOT / "bus").with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    if parts[:1] == ("transport",):
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def imported(path: Path, source: str) -> set[str]:
    """Return the modules of `bus` that a module of it imports, by their place; inside functions too."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        for alias in node.names:
            for target in (
                [*base, *(node.module or "").split(".")],
                [*base, *(node.module or "").split("."), alias.name],
            ):
                file = ROOT.joinpath(*filter(None, target))
                for candidate in (file.with_suffix(".py"), file / "__init__.py"):
                    if candidate.exists():
                        found.add(place(candidate))
    return found - {""}


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def wrong_ways(path: Path, source: str) -> list[str]:
    here = place(path)
    return [
        f"{here} imports {other}"
        for other in sorted(imported(path, source))
        if other != here and (here, other) not in ENTRY and layer(other) >= layer(here) and layer(other) != layer(here)
    ]


@pytest.mark.parametrize("path", [p for p in modules("bus") if place(p)], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_ways(path, path.read_text()) == []


def test_a_wrong_way_is_seen() -> None:
    assert wrong_ways(ROOT / "bus" / "topic.py", "def f():\n    from .worker import Worker") == ["topic imports worker"]
    assert wrong_ways(ROOT / "bus" / "worker.py", "from .topic import check") == []


@pytest.mark.parametrize("transport", ["memory", "rabbitmq"])
def test_a_transport_sees_the_seam_and_what_is_left_of_it(transport: str) -> None:
    mine = [path for path in modules("bus/transport") if place(path).startswith(f"transport.{transport}")]
    seen = set().union(*(imported(path, path.read_text()) for path in mine)) - {place(path) for path in mine}
    assert mine
    assert seen <= TRANSPORTS_SEE


def test_only_the_rabbitmq_transport_knows_a_broker() -> None:
    for path in modules("bus"):
        known = {name for name in absolute(path) if name in ("aio_pika", "aiormq", "pamqp")}
        assert not known or place(path) == "transport.rabbitmq", path


def test_there_is_no_cycle_between_modules() -> None:
    graph = {path: targets(path) for path in modules("bus")}
    done: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(str(p.relative_to(ROOT)) for p in (*above, path))
        if path not in done:
            for target in graph[path]:
                visit(target, (*above, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def targets(path: Path) -> set[Path]:
    """Return the files that a module imports when it is imported itself, packages' own `__init__` left out."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                for file in (ROOT.joinpath(*base, alias.name), ROOT.joinpath(*base)):
                    found |= {candidate for candidate in (file.with_suffix(".py"),) if candidate.exists()}
    return found - {path}


def absolute(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_the_library_imports_itself_relatively() -> None:
    assert [path for path in modules("bus") if "bus" in absolute(path)] == []


def test_events_see_only_the_library_and_handlers_only_events_beside() -> None:
    ours = {"bus", "events", "handlers", "examples", "tests", "app"}
    assert set().union(*(absolute(path) for path in modules("events"))) & ours <= {"bus", "events"}
    for path in modules("handlers"):
        assert absolute(path) & ours <= {"bus", "events"}, path


@pytest.mark.parametrize("folder", ["bus", "events", "handlers", "examples", "benchmarks", "tests"])
def test_files_and_functions_are_short(folder: str) -> None:
    for path in modules(folder):
        assert len(path.read_text().splitlines()) <= LONGEST_FILE, path
        for name, length in functions(path.read_text()):
            assert length <= LONGEST_FUNCTION, f"{path}: {name} has {length} lines"


def functions(source: str) -> list[tuple[str, int]]:
    """Return name and length of each function, its docstring left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                length -= (first.end_lineno or 0) - first.lineno + 1
            found.append((node.name, length))
    return found


def test_a_long_function_is_seen() -> None:
    assert functions("def f():\n" + "    x = 1\n" * 60) == [("f", 61)]
