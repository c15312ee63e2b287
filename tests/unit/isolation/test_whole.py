"""What a supervisor answers of all its processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bus.endpoint import Answer, Request
from bus.isolation.supervisor import Kept
from bus.isolation.whole import LEFT, Whole, answering
from tests.unit.test_health import free_port


class Told:
    """A process that answers what it was told to."""

    def __init__(self, answer: Answer | None, *, begun: bool = True) -> None:
        self.pid = 4711
        self.told: dict[str, Any] = {"answering": True} if begun else {}
        self.asked: list[tuple[str, str]] = []
        self._answer = answer

    async def ended(self) -> int:
        return 0

    def signal(self, number: int) -> None: ...

    async def ask(self, method: str, path: str) -> Answer | None:
        self.asked.append((method, path))
        return self._answer


READY = Answer(200, {"status": "ready", "handlers": {"kitchen.cook": {"state": "consuming"}}})
BLOCKED = Answer(
    503, {"status": "not ready", "handlers": {"kitchen.cook": {"state": "consuming"}}, "blocked": {"handler": "cook"}}
)


def whole(child: Told | None, state: str = "running", cause: str = "") -> Whole:
    kitchen, bar = Kept("kitchen", {"kitchen": ["kitchen.cook"]}), Kept("bar", {"bar": ["bar.pour"]})
    kitchen.becomes(state, cause, child)
    bar.becomes("running", child=Told(Answer(200, {"status": "ready", "handlers": {"bar.pour": {"state": "paused"}}})))
    return Whole([kitchen, bar], asyncio.Event())


async def asked(whole: Whole, path: str, method: str = "GET", *, local: bool = True) -> Answer:
    return await whole.answer(Request(method, path, local))


@pytest.mark.parametrize(
    ("child", "state", "told", "status"),
    [
        (Told(READY), "running", "running", 200),
        (Told(BLOCKED), "running", "blocked", 503),
        (Told(None), "running", "not answering", 503),
        (Told(None, begun=False), "running", "starting", 503),
        (None, "restarting", "restarting", 503),
        (None, "failed", "failed", 503),
    ],
)
async def test_it_is_ready_when_every_process_is_and_names_those_that_are_not(
    child: Told | None, state: str, told: str, status: int
) -> None:
    answer = await asked(whole(child, state, "SIGSEGV: a crash in native code"), "/readyz")
    body: Any = answer.body
    assert (answer.status, body["status"]) == (status, "ready" if status == 200 else "not ready")
    assert body["processes"]["kitchen"]["state"] == told
    assert body["processes"]["kitchen"]["cause"] == "SIGSEGV: a crash in native code"
    assert body["processes"]["bar"]["state"] == "running"
    assert body["handlers"]["bar.pour"] == {"state": "paused"}
    assert ("blocked" in body["processes"]["kitchen"]) == (told == "blocked")
    if told in ("running", "blocked"):
        assert body["handlers"]["kitchen.cook"] == {"state": "consuming"}
    else:
        assert body["handlers"]["kitchen.cook"] == {"state": "not consuming", "why": f"its process is {told}"}


async def test_while_it_stops_it_is_alive_and_not_ready() -> None:
    of = whole(Told(READY))
    of.stop.set()
    answer = await asked(of, "/readyz")
    assert answer.status == 503
    assert isinstance(answer.body, dict)
    assert answer.body["status"] == "stopping"
    assert (await asked(of, "/livez")).status == 200


@pytest.mark.parametrize("name", ["kitchen", "kitchen.cook", "kitchen%2Ecook"])
async def test_a_pause_is_passed_on_to_the_process_that_hosts_it(name: str) -> None:
    child, other = Told(Answer(200, "paused")), Told(Answer(200, "paused"))
    of = whole(child)
    of.kept[1].child = other
    assert await asked(of, f"/pause/{name}", "POST") == Answer(200, "paused")
    assert (child.asked, other.asked) == ([("POST", f"/pause/{name}")], [])


@pytest.mark.parametrize(("answer", "asked_of"), [(Answer(200, "paused"), ["soup", "salad"]), (None, ["soup"])])
async def test_a_process_is_paused_by_its_name_and_each_of_its_services_with_it(
    answer: Answer | None, asked_of: list[str]
) -> None:
    child, starters = Told(answer), Kept("starters", {"soup": ["soup.stir"], "salad": ["salad.toss"]})
    starters.becomes("running", child=child)
    told = await asked(Whole([starters], asyncio.Event()), "/pause/starters", "POST")
    assert child.asked == [("POST", f"/pause/{service}") for service in asked_of]
    stuck = Answer(503, f"process starters does not answer: {LEFT}")
    assert told == (Answer(200, "paused soup, salad") if answer else stuck)


async def test_who_names_nothing_that_is_there_is_told_what_may_be_named() -> None:
    told = await asked(whole(Told(READY)), "/pause/money", "POST")
    assert told == Answer(
        404, "there is no process, service or handler 'money'; there are bar, bar.pour, kitchen, kitchen.cook"
    )


@pytest.mark.parametrize(
    ("method", "path", "local", "status"),
    [
        ("POST", "/pause/kitchen", False, 403),
        ("POST", "/resume/nobody", True, 404),
        ("GET", "/pause/kitchen", True, 405),
        ("POST", "/readyz", True, 405),
        ("GET", "/", True, 404),
        ("POST", "/pause/kitchen", True, 503),
    ],
)
async def test_what_cannot_be_done_is_told(method: str, path: str, local: bool, status: int) -> None:
    child = Told(None)
    assert (await asked(whole(child), path, method, local=local)).status == status
    assert child.asked == ([("POST", "/pause/kitchen")] if status == 503 else [])


async def test_its_numbers_are_those_of_every_process_and_of_their_lives() -> None:
    of = whole(Told(Answer(200, "# HELP seconds S.\n# TYPE seconds gauge\nseconds 2")))
    of.kept[1].child, of.kept[1].restarts = None, 3
    answer = await asked(of, "/metrics")
    assert isinstance(answer.body, str)
    lines = answer.body.splitlines()
    assert 'seconds{process="kitchen"} 2' in lines
    assert 'tidegate_process_up{process="kitchen"} 1' in lines
    assert 'tidegate_process_up{process="bar"} 0' in lines
    assert 'tidegate_process_restarts_total{process="bar"} 3' in lines


async def test_a_question_that_cannot_be_answered_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Told):
        async def ask(self, method: str, path: str) -> Answer | None:
            raise ZeroDivisionError

    async with answering(whole(Broken(None)), f"127.0.0.1:{free_port()}") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        await writer.drain()
        async with asyncio.timeout(20):
            while "not answered" not in caplog.text:
                await asyncio.sleep(0.01)
        reader, other = await asyncio.open_connection("127.0.0.1", port)
        other.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        for each in (writer, other):
            each.close()
