"""`dead`: which letters are meant, what is shown of them, when it asks."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from bus import App, Event, Letter
from bus.cli import acting
from bus.transport.memory import MemoryDeadLetters, MemoryTransport

from .conftest import Bury, Run


NASTY = "\x1b[2J\r\n[bold]forged[/bold]\x9b"


class Paid(Event): ...


class Cash(Paid, type="stall.cash"): ...


class Card(Paid, type="stall.card"): ...


def ids(run: Run, *filters: str) -> list[str]:
    return [letter["id"] for letter in json.loads(run("dead", "list", "--json", *filters).stdout)]


def test_json_is_one_array_of_objects(run: Run, bury: Bury) -> None:
    letter = bury()
    (told,) = json.loads(run("dead", "list", "--json").stdout)
    assert told["first_failed_at"] == letter.failure.first_failed_at.isoformat()
    assert told["last_failed_at"] == letter.failure.last_failed_at.isoformat()
    expected = {"id": letter.id, "service": "kitchen", "handler": "cook", "type": "stall.ordered"}
    expected |= {"reason": "exhausted", "attempts": 3, "error_type": "OSError", "error": "no gas"}
    assert {key: told[key] for key in expected} == expected


def test_json_of_no_letters_is_an_empty_array(run: Run, transport: MemoryTransport) -> None:
    assert json.loads(run("dead", "list", "--json").stdout) == []


def test_the_list_counts_by_exception_and_place(run: Run, bury: Bury) -> None:
    for number in range(3):
        bury(error=f"no gas {number}")
    bury(error_type="ValueError", traceback='File "/srv/menu.py", line 2, in find')
    lines = [line for row in run("dead", "list").stdout.splitlines() if (line := row.replace("│", " ").split())]
    assert ["3", "kitchen.cook", "exhausted", "OSError", "stove.py:7", "in", "light"] in lines
    assert ["1", "kitchen.cook", "exhausted", "ValueError", "menu.py:2", "in", "find"] in lines
    assert any(line[0] == "kitchen/0-2" and line[-4:] == ["OSError:", "no", "gas", "2"] for line in lines)


def test_a_letter_that_failed_again_after_a_replay_says_so(run: Run, bury: Bury, transport: MemoryTransport) -> None:
    letter = bury()
    transport.dead_letters._open[letter.id] = replace(letter, failed_again=2)
    assert "(failed again × 2)" in run("dead", "list").stdout


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["--service", "till"], ["0-1"]),
        (["--handler", "charge"], ["0-1"]),
        (["--handler", "kitchen.cook"], ["0-0", "0-2", "0-3"]),
        (["--type", "stall.cooked"], ["0-2"]),
        (["--reason", "rejected"], ["0-2"]),
        (["--older-than", "2h"], ["0-3"]),
        (["--older-than", "5400"], ["0-2", "0-3"]),
        (["--service", "kitchen", "--older-than", "30m", "--reason", "exhausted"], ["0-0", "0-3"]),
        (["--older-than", "7d"], []),
    ],
)
def test_filters_narrow_what_is_listed(run: Run, bury: Bury, filters: list[str], expected: list[str]) -> None:
    bury(age=timedelta(hours=1))
    bury("till", "charge", age=timedelta(minutes=1))
    bury(age=timedelta(minutes=100), reason="rejected", message={"type": "stall.cooked"})
    bury(age=timedelta(hours=3))
    assert ids(run, *filters) == expected


def test_what_the_broker_gave_up_on_has_the_one_type_of_its_handler_or_none_and_no_age(run: Run, bury: Bury) -> None:
    by_broker = {"message": {"type": ""}, "worker": "", "reason": "broker"}
    bury(**by_broker)
    bury("till", "audit", **by_broker)
    bury("till", "gone", **by_broker)
    told = json.loads(run("dead", "list", "--json").stdout)
    assert [letter["type"] for letter in told] == ["stall.ordered", None, None]
    assert ids(run, "--type", "stall.ordered") == ["0-0"]
    assert ids(run, "--older-than", "1s") == []
    assert run("dead", "list").stdout.count("unknown") == 2
    assert f"{'message type':22} unknown" in run("dead", "show", "0-1").stdout


def test_what_has_no_type_goes_to_a_handler_that_needs_none(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def either(paid: Paid) -> None: ...

    kitchen = app.services[0]
    monkeypatch.setattr(kitchen, "handlers", [*kitchen.handlers])
    kitchen.on(Paid)(either)
    monkeypatch.setenv("EDITOR", "true")
    declare(app, transport)
    for place in ("kitchen", "cook"), ("kitchen", "either"), ("till", "audit"):
        bury(*place, message={"type": "", "id": place[1]}, worker="", reason="broker")
    done = run("dead", "replay", "--yes")
    assert (done.exit_code, done.stdout) == (1, "replay: 2 of 3 done\n")
    told = "the type of kitchen/0-1 is unknown, as the broker gave up on it by itself, and kitchen.either takes several"
    assert told in done.stderr
    assert told in run("dead", "edit", "0-1").stderr
    sent = [stored.message for queue in transport.queues.values() for stored in queue.ready]
    assert {message.id: message.type for message in sent} == {"cook": "stall.ordered", "audit": ""}


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        (["--service", "bar"], "there is no service 'bar'; there are kitchen, till"),
        (["--older-than", "yesterday"], "--older-than 'yesterday': it takes"),
        (
            ["--reason", "bad luck"],
            (
                "--reason 'bad luck': there are exhausted, rejected, expired, undecodable, unknown-type, "
                "unknown-version, too-large, crash, hops, broker\n"
            ),
        ),
        (
            ["--handler", "chrge"],
            (
                "no letter matches, and there is no handler 'chrge'; there are kitchen.cook, till.charge, till.note, "
                "till.audit\n"
            ),
        ),
        (["--handler", "kitchen.charge", "--json"], "there is no handler 'kitchen.charge'; there are kitchen.cook"),
    ],
)
def test_a_filter_that_cannot_be_meant_exits_2(
    run: Run, transport: MemoryTransport, filters: list[str], told: str
) -> None:
    done = run("dead", "list", *filters)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr


def test_a_handler_that_is_gone_from_the_code_is_asked_about_while_it_has_letters(run: Run, bury: Bury) -> None:
    bury(handler="fry")
    assert ids(run, "--handler", "fry") == ["0-0"]
    assert ids(run, "--handler", "kitchen.fry") == ["0-0"]
    for command in (["replay", "--yes"], ["discard", "--yes"], ["export", "-"], ["list"]):
        done = run("dead", *command, "--handler", "frie")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "no letter matches, and there is no handler 'frie'" in done.stderr


def test_letters_of_a_service_that_is_gone_from_the_code_are_reached_by_its_name(
    run: Run, bury: Bury, transport: MemoryTransport, app: App
) -> None:
    declare(app, transport)
    for _ in range(3):
        bury("cellar", "fetch")
    assert run("dead", "list").stdout == "There are no open dead letters that match in kitchen, till.\n"
    assert ids(run, "--service", "cellar") == ["0-0", "0-1", "0-2"]
    assert "cellar.fetch" in run("dead", "show", "cellar/0-0").stdout
    assert run("dead", "replay", "cellar/0-0", "--to", "till.charge").exit_code == 0
    assert run("dead", "export", "-", "--service", "cellar").exit_code == 0
    assert run("dead", "discard", "cellar/0-1").exit_code == 0
    assert run("dead", "discard", "--service", "cellar", "--yes").exit_code == 0
    done = run("dead", "discard", "--service", "cellar")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "no letter matches, and there is no service 'cellar'; there are kitchen, till\n"
    assert run("dead", "list", "--service", "x" * 300).exit_code == 2


def test_show_prints_everything(run: Run, bury: Bury) -> None:
    headers = {"tenant": "7"}
    bury(message={"body": b'{"dish":"soup","plates":[1,2]}', "headers": headers, "problems": ("no version",)})
    shown = " ".join(run("dead", "show", "kitchen/0-0").stdout.split())
    for part in (
        "letter kitchen/0-0",
        "handler kitchen.cook",
        "reason exhausted",
        "error OSError: no gas",
        "attempts 3",
        "worker host:1",
        "message id m-1",
        "message type stall.ordered",
        "message version 1",
        "message source /stall",
        "message content type application/json",
        "header tenant 7",
        "problem 1 no version",
        'body (30 bytes) { "dish": "soup", "plates": [ 1, 2 ] }',
        'traceback File "/srv/stove.py", line 7, in light OSError: no gas',
    ):
        assert part in shown


def test_a_body_that_is_no_json_is_shown_all_the_same(run: Run, bury: Bury) -> None:
    bury(message={"body": b"a\x00b\nsecond \xff\x1b"})
    assert "a\\x00b\nsecond \\xff\\x1b\n" in run("dead", "show", "0-0").stdout


def test_nothing_that_a_message_carries_can_drive_the_terminal(run: Run, bury: Bury) -> None:
    bury(
        error=NASTY,
        error_type=NASTY,
        traceback=f'File "{NASTY}", line 1, in {NASTY}',
        handler=NASTY,
        message={"type": NASTY, "id": NASTY, "body": NASTY.encode(), "source": NASTY, "headers": {NASTY: NASTY}},
    )
    for arguments in (["dead", "list"], ["dead", "show", "0-0"], ["dead", "replay", "0-0"], ["dead", "discard"]):
        done = run(*arguments)
        assert not set(done.output) & set("\x1b\r\x9b")
        assert "[bold]forged[/bold]" in done.output


def test_letters_are_replayed_by_id(run: Run, bury: Bury, transport: MemoryTransport, app: App) -> None:
    declare(app, transport)
    bury()
    bury("till", "charge")
    bury()
    done = run("dead", "replay", "kitchen/0-0", "0-1", "--yes")
    assert (done.exit_code, done.stdout) == (0, "replay: 2 of 2 done\n")
    assert ids(run) == ["0-2"]
    assert {name: len(queue.ready) for name, queue in transport.queues.items() if queue.ready} == {
        "kitchen.cook": 1,
        "till.charge": 1,
    }


def test_a_letter_named_by_its_id_is_discarded_without_a_question(run: Run, bury: Bury) -> None:
    bury()
    bury()
    assert run("dead", "discard", "0-1", "--service", "kitchen").exit_code == 0
    assert ids(run) == ["0-0"]


@pytest.mark.parametrize("command", ["show", "replay", "discard"])
@pytest.mark.parametrize(
    ("id", "code", "told"),
    [
        ("0-9", 1, "there is no open dead letter 0-9"),
        ("till/0-0", 1, "there is no open dead letter till/0-0"),
        ("bar/0-0", 2, "there is no service 'bar'"),
        ("nonsense", 1, "there is no open dead letter nonsense"),
    ],
)
def test_an_id_that_is_not_there_is_told(run: Run, bury: Bury, command: str, id: str, code: int, told: str) -> None:
    bury()
    done = run("dead", command, id)
    assert (done.exit_code, done.stdout) == (code, "")
    assert told in done.stderr
    assert ids(run) == ["0-0"]


def test_an_id_of_two_services_must_say_which(run: Run, bury: Bury, transport: MemoryTransport) -> None:
    bury()
    other = bury("till", "charge")
    transport.dead_letters._open[other.id] = replace(other, id="0-0")
    done = run("dead", "discard", "0-0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "0-0 names 2 letters: kitchen/0-0, till/0-0; give one of these names" in done.stderr
    assert run("dead", "show", "till/0-0").exit_code == run("dead", "show", "0-0", "--service", "till").exit_code == 0


@pytest.mark.parametrize("verb", ["replay", "discard"])
@pytest.mark.parametrize("filters", [[], ["--service", "kitchen"], ["0-0", "0-1"]])
def test_without_a_terminal_many_letters_need_yes(
    run: Run, bury: Bury, transport: MemoryTransport, app: App, verb: str, filters: list[str]
) -> None:
    declare(app, transport)
    bury()
    bury()
    done = run("dead", verb, *filters)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "2 of kitchen.cook" in done.stderr
    assert "add --yes" in done.stderr
    assert ids(run) == ["0-0", "0-1"]
    done = run("dead", verb, *filters, "--yes")
    assert (done.exit_code, done.stdout) == (0, f"{verb}: 2 of 2 done\n")
    assert ids(run) == []


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("y\n", 0, []), ("n\n", 1, ["0-0", "0-1"]), ("", 130, ["0-0", "0-1"])]
)
def test_on_a_terminal_it_asks(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: list[str]
) -> None:
    bury()
    bury()
    monkeypatch.setattr(
        acting,
        "sys",
        SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stderr=SimpleNamespace(isatty=lambda: False)),
    )
    done = run("dead", "discard", input=answer)
    assert done.exit_code == code
    assert "discard 2 dead letters (2 of kitchen.cook)? [y/N]" in done.stderr
    assert ids(run) == left


def test_nothing_to_do_is_no_failure(run: Run, bury: Bury) -> None:
    bury()
    done = run("dead", "replay", "--service", "till")
    assert (done.exit_code, done.stdout) == (0, "nothing to replay: no open letter matches\n")


def test_it_goes_on_past_a_letter_that_somebody_else_has_taken(
    run: Run, bury: Bury, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        bury()
    discard = MemoryDeadLetters.discard

    async def taken(self: MemoryDeadLetters, letter: Letter) -> None:
        if letter.id == "0-1":
            raise LookupError("dead letter 0-1 of kitchen is being handled by somebody else")
        await discard(self, letter)

    monkeypatch.setattr(MemoryDeadLetters, "discard", taken)
    done = run("dead", "discard", "--yes")
    assert (done.exit_code, done.stdout) == (1, "discard: 2 of 3 done\n")
    assert done.stderr == "kitchen/0-1: dead letter 0-1 of kitchen is being handled by somebody else\n"
    assert ids(run) == ["0-1"]


def test_a_replay_to_a_handler_that_is_gone_leaves_the_letter(run: Run, bury: Bury) -> None:
    bury()
    done = run("dead", "replay", "0-0")
    assert (done.exit_code, done.stdout) == (1, "replay: 0 of 1 done\n")
    assert "kitchen/0-0: no queue wants 'kitchen.cook'" in done.stderr
    assert ids(run) == ["0-0"]


@pytest.mark.parametrize("url", ["", "memory://"])
def test_without_a_broker_there_are_no_letters_to_look_at(run: Run, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("BUS_URL", url)
    done = run("dead", "list")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "set BUS_URL" in done.stderr


def test_dead_alone_says_what_there_is(run: Run, transport: MemoryTransport) -> None:
    done = run("dead")
    assert all(command in done.output for command in ("list", "show", "replay", "discard"))


def declare(app: App, transport: MemoryTransport) -> None:
    subscriptions = [handler.subscription(app.events) for service in app.services for handler in service.handlers]
    asyncio.run(transport.declare(subscriptions))
