"""Commands of the app's own, and what a user's mistake looks like in any of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from bus import (
    AccessRefused,
    App,
    BusUnavailable,
    ConfigurationError,
    Fate,
    MessageTooLarge,
    PublishRefused,
    TopologyMismatch,
    Undecodable,
    Unroutable,
)
from bus.cli import command_line

from ..packages import Written
from .conftest import HERE, Run


def stall(*commands: Callable[..., Any]) -> App:
    return App("stall", events=f"{HERE}.events", services=f"{HERE}.services", commands=commands)


def test_a_command_is_a_function_that_is_given_the_app(run: Run) -> None:
    def lay_table(app: App, guests: int, cloth: Annotated[str, typer.Option(help="Its colour.")] = "white") -> None:
        """Lay the table."""
        typer.echo(f"{app.name}: {guests} guests, {cloth}")

    assert run("lay-table", "4", "--cloth", "red", of=stall(lay_table)).stdout == "stall: 4 guests, red\n"
    helped = run("lay-table", "--help", of=stall(lay_table)).stdout
    assert "Lay the table." in helped
    assert "--app" not in helped
    assert "lay-table" in run("--help", of=stall(lay_table)).stdout


def test_only_the_first_parameter_is_the_app(run: Run) -> None:
    def advertise(text: str, app: str = "all") -> None:
        typer.echo(f"{text} in {app}")

    assert run("advertise", "soup", "--app", "paper", of=stall(advertise)).stdout == "soup in paper\n"


@pytest.mark.parametrize(
    ("returned", "code"), [(None, 0), (0, 0), (7, 7), (255, 255), (256, 1), (-1, 1), (True, 0), ("text", 0)]
)
def test_a_whole_number_that_is_returned_is_the_exit_code(run: Run, returned: object, code: int) -> None:
    def plain() -> object:
        return returned

    async def asynchronous(app: App) -> object:
        return returned

    assert run("plain", of=stall(plain, asynchronous)).exit_code == code
    assert run("asynchronous", of=stall(plain, asynchronous)).exit_code == code


def test_two_commands_of_one_name_are_an_error() -> None:
    def publish() -> None: ...

    def same() -> None: ...

    with pytest.raises(ConfigurationError, match="two commands 'publish'"):
        command_line(stall(publish))
    with pytest.raises(ConfigurationError, match="two commands 'same'"):
        command_line(stall(same, same))


@pytest.mark.parametrize("command", [partial(print), lambda: None, "stall"], ids=["partial", "lambda", "text"])
def test_what_has_no_name_to_call_it_by_is_no_command(command: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"App\(commands=…\): .* is no function with a name of its own"):
        command_line(stall(command))


def test_one_function_is_no_list_of_commands() -> None:
    def hello() -> None: ...

    with pytest.raises(ConfigurationError, match=r"app 'stall': commands=\[hello\] is how one command is given"):
        App("stall", events="events", services="handlers", commands=hello)  # type: ignore[arg-type]


def test_an_annotation_that_cannot_be_read_is_an_error() -> None:
    def hidden(path: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match=r"command hidden: name 'Nowhere'.*not under `if TYPE_CHECKING`"):
        command_line(stall(hidden))


def test_a_parameter_that_no_command_line_can_give_by_name_is_an_error() -> None:
    def seat(guest: str, /) -> None: ...

    def resend(*orders: str) -> None: ...

    def season(app: App, **spices: str) -> None: ...

    for command, told in ((seat, "guest"), (resend, r"\*orders"), (season, r"\*\*spices")):
        with pytest.raises(ConfigurationError, match=rf"command {command.__name__}: {told} .* `orders: list\[str\]`"):
            command_line(stall(command))


def test_a_command_may_take_the_app_by_its_place_alone(run: Run) -> None:
    def close(app: App, /, at: str) -> None:
        typer.echo(f"{app.name} closes at {at}")

    assert run("close", "noon", of=stall(close)).stdout == "stall closes at noon\n"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigurationError("BUS_GRACE: wrong", "BUS_URL: wrong too"), 2, "BUS_GRACE: wrong\nBUS_URL: wrong too\n"),
        (TopologyMismatch("x-queue-type"), 2, "x-queue-type\n"),
        (AccessRefused("login of guest"), 2, "login of guest\n"),
        (Undecodable("no dish", ["dish: required"]), 2, "no dish\n  dish: required\n"),
        (MessageTooLarge("stall.ordered", 9, 8), 2, None),
        (Unroutable("nobody", {"1": Fate.UNROUTABLE}), 1, "nobody (1 unroutable)\n"),
        (PublishRefused("full", {}), 1, "full\n"),
        (PublishRefused("no mark", {"": Fate.UNKNOWN}), 1, "no mark\n"),
        (BusUnavailable("nobody answers", {}), 3, "nobody answers\n"),
        (LookupError("no letter"), 1, "no letter\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "cannot write: No space left on device\n"),
        (OSError(errno.EDQUOT, "Quota exceeded", "/srv/a"), 1, "cannot write /srv/a: Quota exceeded\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (typer.Exit(5), 5, ""),
        (typer.BadParameter("not that one"), 2, None),
        (ConfigurationError("a \x1b[2J name"), 2, "a \\x1b[2J name\n"),
    ],
    ids=repr,
)
def test_what_a_user_can_cause_is_told_without_a_traceback(
    run: Run, error: BaseException, code: int, told: str | None
) -> None:
    def fail() -> None:
        raise error

    done = run("fail", of=stall(fail))
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in (None, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_group_of_mistakes_is_told_one_by_one(run: Run) -> None:
    inner = ExceptionGroup("inner", [AccessRefused("a"), ConfigurationError("b")])

    async def fail() -> None:
        raise ExceptionGroup("outer", [inner, AccessRefused("a")])

    done = run("fail", of=stall(fail))
    assert (done.exit_code, done.stderr) == (2, "a\nb\n")


@pytest.mark.parametrize(
    "bug", [KeyError("x"), ValueError("y"), ExceptionGroup("z", [AccessRefused("a"), OSError(errno.EBADF, "")])]
)
def test_a_bug_keeps_its_traceback(run: Run, bug: Exception) -> None:
    def fail() -> None:
        raise bug

    with pytest.raises(type(bug)) as raised:
        run("fail", of=stall(fail))
    assert raised.value is bug


@pytest.mark.parametrize(
    "arguments",
    [["services"], ["run"], [], ["dead", "list"], ["topology"], ["publish", "stall.ordered", "{}"], ["own"]],
    ids=str,
)
def test_a_wrong_setting_stops_every_command_in_a_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def own() -> None:
        typer.echo("it ran")

    monkeypatch.setenv("BUS_GRACE", "abc")
    done = run(*arguments, of=stall(own))
    told = "BUS_GRACE='abc': it must be a number of seconds above 0\n"
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", told)
    assert run(*arguments, "--help", of=stall(own)).exit_code == 0


@pytest.mark.parametrize("arguments", [["dead", "list"], ["topology"], ["services"]], ids=str)
@pytest.mark.usefixtures("transport")
def test_a_setting_that_is_none_is_told(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("BUS_GRACES", "3")
    done = run(*arguments)
    assert done.exit_code == 0
    assert done.stderr == "BUS_GRACES is no setting of Tidegate; did you mean BUS_GRACE?\n"


def test_what_a_module_raises_is_told_in_any_command(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Written(tmp_path, monkeypatch)
    packages.write(raising="import os\n\nos.environ['NO_SUCH_NAME']\n")
    for arguments in (["services"], ["run"]):
        done = run(*arguments, of=App("stall", events="raising", services="raising"))
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-3:] == [
            "services: the import of raising failed: KeyError: 'NO_SUCH_NAME'",
            f"  {tmp_path}/raising.py:3, in <module>: os.environ['NO_SUCH_NAME']",
            "`python -c 'import raising'` shows the whole traceback",
        ]
    packages.forget()


def test_an_unknown_command_or_option_exits_2(run: Run) -> None:
    for arguments in (["cook"], ["services", "--xml"], ["publish"]):
        done = run(*arguments)
        assert done.exit_code == 2
        assert "Usage" in done.stderr
