"""Services and events are found by being there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus import ConfigurationError, Event, Events, Service, discovery

from .packages import Written


class Elsewhere(Event, type="else.where"): ...


class Base(Event): ...


class Middle(Base): ...


class One(Base, type="one"): ...


class Two(Middle, type="two"): ...


class WithoutType(One): ...


class Apart(Event, type="apart"): ...


async def work(event: object) -> None: ...


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    packages = Written(tmp_path, monkeypatch)
    yield packages
    packages.forget()


SERVICE = """
    from bus import Service
    {0} = Service("{0}")
"""


@pytest.mark.parametrize("module", ["ended__", "ended__deep__inner"])
def test_a_module_that_ends_the_program_is_named_with_its_line(written: Written, module: str) -> None:
    written.write(**{module: "import sys\n\nsys.exit(9)"})
    name, file = module.rstrip("_").replace("__", "."), "__init__" if module == "ended__" else "inner"
    told = rf"the import of {name} ended the program with exit\(9\) \(\S+{file}\.py:3\)"
    with pytest.raises(ConfigurationError, match=f"services: {told}"):
        discovery.services("ended")
    with pytest.raises(ConfigurationError, match=f"events: {told}"):
        discovery.events("ended")


def test_services_are_found_in_every_module_by_name_and_once(written: Written) -> None:
    written.write(
        found__="from .zebra import zebra",
        found__zebra=SERVICE.format("zebra"),
        found__deep__inner__apple=SERVICE.format("apple"),
        found__none="text = 'no service'",
    )
    assert [service.name for service in discovery.services("found")] == ["apple", "zebra"]


def test_a_single_module_is_a_package_too(written: Written) -> None:
    written.write(single=SERVICE.format("one"))
    assert [service.name for service in discovery.services("single")] == ["one"]


def test_two_services_of_one_name_are_both_found(written: Written) -> None:
    written.write(twice__a=SERVICE.format("one"), twice__b=SERVICE.format("one"))
    assert [service.name for service in discovery.services("twice")] == ["one", "one"]


def test_a_package_without_a_service_is_a_mistake(written: Written) -> None:
    written.write(empty__="")
    with pytest.raises(ConfigurationError, match="services='empty': there is no Service in that package"):
        discovery.services("empty")


@pytest.mark.parametrize("package", ["nowhere", "nowhere.deep", "there.nowhere"])
def test_a_package_that_is_not_there_is_told_by_its_setting(written: Written, package: str) -> None:
    written.write(there__="")
    with pytest.raises(ConfigurationError, match=f"events='{package}': there is no such package"):
        discovery.events(package)
    with pytest.raises(ConfigurationError, match=f"services='{package}': there is no such package"):
        discovery.services(package)


RAISED = "from os import path\n\ndef need():\n    raise RuntimeError('no database\\n\\nset one')\n\nneed()\n"


@pytest.mark.parametrize("where", ["broken__", "broken__module", "broken__deep__", "broken__deep__module"])
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "import not_installed",
            "ModuleNotFoundError: No module named 'not_installed'\n  {file}:1, in <module>: import not_installed\n",
        ),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax ({name}.py, line 2)\n  {file}:2: def f(:\n"),
        (
            "import json\njson.loads('?')",
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0)\n  {file}:2, in <module>: json.loads('?')\n",
        ),
        (
            RAISED,
            (
                "RuntimeError: no database\n  set one\n  {file}:6, in <module>: need()\n"
                "  {file}:4, in need: raise RuntimeError('no database\\n\\nset one')\n"
            ),
        ),
    ],
)
def test_what_a_module_raises_is_told_with_the_lines_of_it_alone(
    written: Written, tmp_path: Path, where: str, code: str, told: str
) -> None:
    written.write(**{"broken__": "", where: code})
    *folders, last = where.split("__")
    file = tmp_path.joinpath(*folders, f"{last or '__init__'}.py")
    with pytest.raises(ConfigurationError) as raised:
        discovery.services("broken")
    module = where.rstrip("_").replace("__", ".")
    assert str(raised.value) == (
        f"services: the import of {module} failed: {told.format(file=file, name=file.stem)}"
        f"`python -c 'import {module}'` shows the whole traceback"
    )


def test_the_innermost_lines_are_told_relative_to_the_folder_in_which_the_program_runs(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written.write(broken__="def f(n):\n    return f(n - 1) if n else 1 / 0\n\nf(9)\n")
    with pytest.raises(ConfigurationError) as raised:
        discovery.services("broken")
    _, *places, _ = str(raised.value).splitlines()
    assert places == ["  broken/__init__.py:2, in f: return f(n - 1) if n else 1 / 0"] * 5


def test_an_app_that_is_installed_among_the_libraries_has_its_lines_told(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.importing.INSTALLED", (f"{tmp_path}/",))
    written.write(broken__="import not_installed")
    with pytest.raises(ConfigurationError, match=r"broken/__init__\.py:1, in <module>: import not_installed"):
        discovery.services("broken")


def test_a_mistake_of_a_module_is_told_with_its_line(written: Written, tmp_path: Path) -> None:
    written.write(wrong__a="from bus import Service\n\nService('Upper')\n")
    with pytest.raises(ConfigurationError, match="service 'Upper': a name has") as raised:
        discovery.services("wrong")
    assert raised.value.problems[-1] == f"  {tmp_path}/wrong/a.py:3, in <module>: Service('Upper')"
    written.write(placed__a="from bus import Service\n\n@Service('s').on('#', retry=3)\ndef f(message): ...\n")
    with pytest.raises(ConfigurationError, match=r"a\.py:3\): retry=3") as raised:
        discovery.services("placed")
    assert len(raised.value.problems) == 1


def test_a_folder_is_looked_into_without_an_init_file_too(written: Written, tmp_path: Path) -> None:
    written.write(plain__=SERVICE.format("top"), plain__kept__deep__inner=SERVICE.format("deep"))
    for folder in ("kept", "kept/deep"):
        (tmp_path / "plain" / folder / "__init__.py").unlink()
    (tmp_path / "plain" / "kept.txt").touch()
    for folder in ("no-name", "nothing"):
        (tmp_path / "plain" / folder).mkdir()
    (tmp_path / "plain" / "no-name" / "script.py").write_text("raise SystemExit(1)")
    assert [service.name for service in discovery.services("plain")] == ["deep", "top"]


@pytest.mark.parametrize(
    ("closed", "package"),
    [("shut", "shut"), ("shut/deep", "shut"), ("shut/deep/below", "shut"), ("shut", "shut.missing")],
)
def test_a_folder_that_may_not_be_listed_is_told_and_what_is_in_it_not_left_out(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, package: str
) -> None:
    written.write(shut__=SERVICE.format("top"), shut__deep__below__a=SERVICE.format("below"))
    for folder in ("deep", "deep/below"):
        # one that may not be listed is no package to Python, with an init file or without
        (tmp_path / "shut" / folder / "__init__.py").unlink()
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == tmp_path / closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(ConfigurationError, match=f"^services: {tmp_path}/{closed} cannot be read: Permission denied; "):
        discovery.services(package)


EVENTS = """
    from bus import Data, Event
    class Line(Data): ...
    class Base(Event): ...
    class One(Base, type="{0}.one"): ...
    class Two(Base, type="{0}.two"): ...
"""


def types(events: Events) -> list[str]:
    return sorted(str(cls.__schema__.type) for cls in events)


def test_events_are_found_where_they_are_defined(written: Written) -> None:
    written.write(facts__a=EVENTS.format("a"), facts__b="from .a import One, Event", facts__c__d=EVENTS.format("d"))
    assert types(discovery.events("facts")) == ["a.one", "a.two", "d.one", "d.two"]


def test_a_package_without_events_has_none(written: Written) -> None:
    written.write(facts__="from bus import Event")
    assert len(discovery.events("facts")) == 0


def test_a_type_that_is_used_twice_is_told_with_both_places(written: Written) -> None:
    written.write(facts__a=EVENTS.format("a"), facts__b=EVENTS.format("a"))
    with pytest.raises(ConfigurationError, match=r"used twice: by facts\.a\.One and by facts\.b\.One"):
        discovery.events("facts")


def test_what_handlers_name_is_known_too(written: Written) -> None:
    service = Service("shop")
    service.on(Elsewhere)(work)
    written.write(facts__a=EVENTS.format("a"))
    assert types(discovery.events("facts", [service])) == ["a.one", "a.two", "else.where"]


def test_a_base_that_a_handler_names_brings_its_subclasses_however_deep() -> None:
    service = Service("shop")
    service.on(Base)(work)
    service.on("#", name="audit")(work)
    assert types(discovery.named([service])) == ["one", "two"]
    assert types(discovery.named([service], Events([Apart]))) == ["apart", "one", "two"]
    assert len(discovery.named([])) == 0


def test_a_base_that_stands_for_no_event_is_told_with_its_handler() -> None:
    class Forgotten(Event): ...

    service = Service("shop")
    service.on(Forgotten, One)(work)
    told = rf"\.work \({__file__}:\d+\): on\(Forgotten\) gets no events, .* write class Forgotten\(…, type="
    with pytest.raises(ConfigurationError, match=told):
        discovery.named([service])

    class Later(Forgotten, type="later"): ...

    assert types(discovery.named([service])) == ["later", "one"]


def test_a_handler_of_every_event_gets_none_of_the_librarys_own() -> None:
    code = """if True:
        from bus import Event, Service, discovery
        class One(Event, type="one"): ...
        service = Service("shop")
        service.on(Event, name="all")(lambda event: None)
        print([cls.__schema__.type for cls in discovery.named([service])])
    """
    # alone: this process is full of the events of other tests
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout == "['one']\n"
